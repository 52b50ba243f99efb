"""Quantization methods: one file each, one interface, one registry."""

from . import gps, omniquant, os_plus, quarot, repq, rtn, smoothquant, svdquant  # noqa: F401
from .base import METHODS, LayerView, Method, Transform, get_method, register

__all__ = ["METHODS", "LayerView", "Method", "Transform", "get_method", "register"]
