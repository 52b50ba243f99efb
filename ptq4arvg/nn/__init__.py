"""Modules that quantization puts into a model. Only these modules call ops."""

from .attention import SOFTMAX_KINDS, AttentionCore, QuantAttention
from .conv import PackedConv2d
from .cursor import Cursor
from .int_attention import IntAttention
from .linear import PackedLinear, PackedWeight, QuantLinear
from .prologue import Prologue, rotate

__all__ = [
    "SOFTMAX_KINDS",
    "AttentionCore",
    "Cursor",
    "IntAttention",
    "PackedConv2d",
    "PackedLinear",
    "PackedWeight",
    "Prologue",
    "QuantAttention",
    "QuantLinear",
    "rotate",
]
