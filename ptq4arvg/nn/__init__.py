"""Modules that quantization puts into a model. Only these modules call ops."""

from .attention import AttentionCore
from .cursor import Cursor

__all__ = ["AttentionCore", "Cursor"]
