"""Quantization methods: one file each, one interface, one registry."""

from . import gps, os_plus, repq, rtn, smoothquant  # noqa: F401  (registers them)
from .base import METHODS, LayerView, Method, Transform, get_method, register

__all__ = ["METHODS", "LayerView", "Method", "Transform", "get_method", "register"]
