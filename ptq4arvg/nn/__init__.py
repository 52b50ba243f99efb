"""Modules that quantization puts into a model. Only these modules call ops."""

from .attention import AttentionCore, QuantAttention
from .cursor import Cursor
from .int_attention import IntAttention
from .linear import PackedLinear, QuantLinear
from .prologue import Prologue, rotate

__all__ = [
    "AttentionCore",
    "Cursor",
    "IntAttention",
    "PackedLinear",
    "Prologue",
    "QuantAttention",
    "QuantLinear",
    "rotate",
]
