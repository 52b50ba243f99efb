"""Quantized linears: simulated in floating point, and computed in integers from packed weights."""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops, reference
from ..numerics import LinearQuantization, expand_groups
from .cursor import Cursor
from .dtype import keeping_dtype

__all__ = ["PackedLinear", "PackedWeight", "QuantLinear"]


class _StaticInput(nn.Module):
    """Static per-position input grid of a linear: tables over the positions, read at the cursor."""

    def __init__(self, q: LinearQuantization, cursor: Cursor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = q.codes.shape
        self.w_bits, self.a_bits, self.sink = q.w_bits, q.a_bits, tuple(sorted(q.sink))
        self.rotation, self.cursor = q.rotation, cursor
        self.register_buffer("w_scale", q.w_scale.float().contiguous())
        self.register_buffer("w_zero", q.w_zero)
        self.register_buffer("bias", None if q.bias is None else q.bias.float().contiguous())
        self.register_buffer("input_scale", q.input_scale.float())
        self.register_buffer("input_zero", q.input_zero.to(torch.int32))
        self.register_buffer("position_group", q.position_group)
        for name in ("a_scale", "a_inv_scale", "a_level_zero", "a_zero"):
            self.register_buffer(name, None, persistent=False)
        self._make_tables()
        self.register_load_state_dict_post_hook(_StaticInput._make_tables)
        # Taken from here, as a tensor made of numbers would be a copy from the host in every step.
        sinks = torch.tensor(self.sink, dtype=torch.int64)
        self.register_buffer("_sinks", sinks, persistent=False)
        self._one_row = len(self.a_scale) == 1  # its input has no token axis

    def _make_tables(self, _keys: object = None) -> None:
        """Tables in the form the ops read; derived, so not part of the state."""
        scale = expand_groups(self.input_scale, self.position_group)
        zero = expand_groups(self.input_zero, self.position_group)
        self.a_scale, self.a_inv_scale, self.a_level_zero = scale, 1.0 / scale, zero
        self.a_zero = zero - 128 if self.a_bits == 8 else None

    def _apply(self, fn, recurse: bool = True):
        return super()._apply(keeping_dtype(fn), recurse)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"w_bits={self.w_bits}, a_bits={self.a_bits}, groups={len(self.input_scale)}"
            + (f", rotation={self.rotation}" if self.rotation else "")
        )

    def _where(self) -> tuple[Tensor | None, int]:
        """(position, tokens) for the ops; an input without a token axis has a one-row table."""
        if self._one_row:
            return None, 0
        return self.cursor.position, self.cursor.tokens

    def quantize(self, x: Tensor) -> Tensor:
        """Codes int8 of the input x [..., K] at the cursor's positions."""
        position, tokens = self._where()
        inv_scale = self.a_inv_scale
        if x.dtype == torch.float64:  # a simulation in double precision: the codes are the same
            x, inv_scale = x.float(), inv_scale.float()
        return ops.quantize(
            x, inv_scale, self.a_level_zero, self.a_bits, position=position, tokens=tokens,
            rotation=self.rotation,
        )  # fmt: skip

    def rotated(self, x: Tensor) -> Tensor:
        """x [..., K] rotated as before its quantization, then in float32 or wider."""
        if not self.rotation:
            return x
        return reference.rotate(x.to(torch.promote_types(x.dtype, torch.float32)), self.rotation)

    def _sink_rows(self, rows: int) -> Tensor | None:
        """Indices of the rows whose position is a sink, or None."""
        if not self.sink or self._one_row:
            return None
        begin, tokens = self.cursor.begin, self.cursor.tokens
        first, last = (bisect_left(self.sink, end) for end in (begin, begin + tokens))
        if first == last:
            return None
        images = torch.arange(-begin, rows - begin, tokens, device=self._sinks.device)
        return (images[:, None] + self._sinks[first:last]).flatten()

    def _replace_sinks(self, y: Tensor, x: Tensor) -> Tensor:
        """Put rows computed from float activations where y [..., N] belongs to sink positions."""
        rows = self._sink_rows(y.numel() // self.out_features)
        if rows is None:
            return y
        flat = self.rotated(x.reshape(-1, self.in_features)[rows])
        y.view(-1, self.out_features)[rows] = self._float_rows(flat).to(y.dtype)
        return y


class QuantLinear(_StaticInput):
    """A quantized linear simulated in floating point: x [..., K] -> [..., N] in the dtype of x.

    The same codes as ``PackedLinear``, multiplied after dequantization; it is what the integer
    path is checked against, and runs in any float dtype. Two things it can do that no integer
    layer does: ``turn`` rotates the whole input before anything else; ``branch`` (up [N, r], down
    [r, K]) adds a low-rank product of the input in floating point.
    """

    def __init__(
        self,
        q: LinearQuantization,
        cursor: Cursor,
        branch: tuple[Tensor, Tensor] | None = None,
        turn: nn.Module | None = None,
    ) -> None:
        super().__init__(q, cursor)
        self.register_buffer("weight", q.weight())
        self.register_buffer("up", None if branch is None else branch[0])
        self.register_buffer("down", None if branch is None else branch[1])
        self.turn = turn

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        for name in ("weight", "up", "down"):  # of products in floating point
            if self._buffers[name] is not None:
                self._buffers[name] = fn(self._buffers[name])
        return self

    def dequantized_input(self, x: Tensor) -> Tensor:
        """x [..., K] rounded to the static grid of its positions, in its own dtype."""
        codes = self.quantize(x).to(x.dtype).reshape(-1, self.in_features)
        position, tokens = self._where()
        begin = 0 if position is None else position
        row = begin + torch.arange(codes.shape[0], device=x.device) % (tokens or len(self.a_scale))
        if self.a_zero is not None:
            codes = codes - self.a_zero[row, None].to(x.dtype)
        return (codes * self.a_scale[row, None].to(x.dtype)).reshape(x.shape)

    def _float_rows(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.turn is not None:
            x = self.turn(x)
        y = self._replace_sinks(self._float_rows(self.dequantized_input(x)), x)
        if self.up is None:
            return y
        turned = self.rotated(x).to(x.dtype)
        return y + F.linear(F.linear(turned, self.down.to(x.dtype)), self.up.to(x.dtype))


class PackedWeight(_StaticInput):
    """What computes in integers from a packed weight.

    Buffers: ``packed`` uint8, the weight in this device's kernel layout, ``w_scale`` [N],
    ``w_zero`` int32 [N] or None, ``w_sum`` int32 [N], ``bias`` [N] or None, ``input_scale`` and
    ``input_zero`` [G], ``position_group`` [T]. dtype: of the output where the input does not tell
    it.
    """

    def __init__(self, q: LinearQuantization, cursor: Cursor | None, dtype: torch.dtype) -> None:
        super().__init__(q, cursor)
        self.dtype = dtype
        self.register_buffer("w_sum", q.codes.sum(1, dtype=torch.int32))
        self.register_buffer("packed", ops.pack_weight(q.codes.contiguous(), q.w_zero, q.w_bits))

    def canonical(self) -> LinearQuantization:
        """The canonical (row-major) form of this layer, as checkpoints store it."""
        codes = ops.unpack_weight(
            self.packed, self.w_zero, self.w_bits, self.out_features, self.in_features
        )
        return LinearQuantization(
            codes, self.w_scale, self.w_zero, self.bias, self.input_scale, self.input_zero,
            self.position_group, self.w_bits, self.a_bits, self.sink, self.rotation,
        )  # fmt: skip

    def _apply(self, fn, recurse: bool = True):
        before = self.packed.device
        made = fn(torch.empty(0, dtype=self.dtype, device=before))
        after, self.dtype = made.device, made.dtype
        if before.type in (after.type, "meta"):
            return super()._apply(fn, recurse)
        # The packed layout is that of a kind of device, so a move to another packs anew.
        codes = self.canonical().codes.to(after)
        super()._apply(fn, recurse)
        self.packed = ops.pack_weight(codes, self.w_zero, self.w_bits)
        return self

    def weight_bytes(self) -> int:
        """Bytes that the packed weight takes in memory."""
        return self.packed.numel()

    def _weight(self) -> tuple[Tensor | None, ...]:
        """What products take after their codes, up to the bias."""
        own = self._buffers  # many times faster than attributes
        return (
            own["packed"], own["a_scale"], own["w_scale"], own["a_zero"], own["w_sum"],
            own["w_zero"], own["bias"],
        )  # fmt: skip


class PackedLinear(PackedWeight):
    """A quantized linear computed in integers: x [..., K] float, or int8 codes, -> [..., N].

    ``activation`` is applied in the GEMM's epilogue. dtype: of the output where the input is codes.
    """

    def __init__(
        self, q: LinearQuantization, cursor: Cursor, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(q, cursor, dtype)
        self.activation = "none"
        self._next: tuple[PackedLinear, ...] = ()  # a tuple, so that it is not a submodule

    def _float_rows(self, x: Tensor) -> Tensor:
        return ops.gemm_float(
            x, self.packed, self.w_scale, w_zero=self.w_zero, bias=self.bias,
            bits=self.w_bits, activation=self.activation,
        )  # fmt: skip

    def fuse(self, activation: str, consumer: PackedLinear | None) -> None:
        """Apply ``activation`` and hand ``consumer`` its codes from this GEMM's epilogue.

        ("none", None) gives plain floating point outputs again.
        """
        self.activation, self._next = activation, () if consumer is None else (consumer,)

    def quantize_norm(
        self, norm: nn.Module, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Codes int8 of ``norm(x, scale, shift)``, normalized, modulated and quantized in one op.

        norm: a module with ``eps``, ``rms`` and the vectors ``weight``, ``bias``, ``constant``,
        ``post_scale``, ``post_shift`` ([K] or None); x [B, T, K]; scale and shift [B, 1, K].
        """
        position, tokens = self._where()
        own, norms = self._buffers, norm._buffers  # many times faster than attributes
        affine = norm._parameters
        return ops.norm_quantize(
            x, own["a_inv_scale"], own["a_level_zero"], self.a_bits, weight=affine.get("weight"),
            bias=affine.get("bias"), scale=scale, shift=shift, rms=norm.rms,
            constant=norms["constant"], post_scale=norms["post_scale"],
            post_shift=norms["post_shift"], eps=norm.eps, position=position, tokens=tokens,
            rotation=self.rotation,
        )  # fmt: skip

    def quantize_gated(self, x: Tensor, activation: str) -> Tensor:
        """Codes int8 [..., K] of ``activation(x[..., :K]) * x[..., K:]``, made in one op."""
        position, tokens = self._where()
        own = self._buffers  # many times faster than attributes
        return ops.gate_quantize(
            x, own["a_inv_scale"], own["a_level_zero"], self.a_bits, activation=activation,
            position=position, tokens=tokens, rotation=self.rotation,
        )  # fmt: skip

    def quantize_attention(self, *operands: Tensor, **where: Tensor | None) -> Tensor:
        """Codes int8 [B, t, K] of ``ops.attention`` of the same arguments, made in one op."""
        own = self._buffers  # many times faster than attributes
        return ops.attention_quantize(
            *operands, **where, out_inv_scale=own["a_inv_scale"], out_zero=own["a_level_zero"],
            out_bits=self.a_bits, out_position=self._where()[0], out_rotation=self.rotation,
        )  # fmt: skip

    def forward(
        self, x: Tensor, residual: Tensor | None = None, gate: Tensor | None = None
    ) -> Tensor:
        """The linear of x; with ``residual`` [..., N] (and ``gate`` [images, N]) in its dtype,
        ``residual + gate * linear(x)`` in the same op."""
        codes = x if x.dtype == torch.int8 else self.quantize(x)
        position, tokens = self._where()
        if self._next:
            to = self._next[0]
            return ops.gemm_quantize(
                codes, *self._weight(), out_inv_scale=to.a_inv_scale, out_zero=to.a_level_zero,
                out_bits=to.a_bits, bits=self.w_bits, position=position, tokens=tokens,
                activation=self.activation, out_rotation=to.rotation,
            )  # fmt: skip
        like = x if residual is None else residual
        y = ops.gemm(
            codes, *self._weight(), bits=self.w_bits, position=position, tokens=tokens,
            activation=self.activation, residual=residual, gate=gate,
            out_dtype=self.dtype if like.dtype == torch.int8 else like.dtype,
        )  # fmt: skip
        return self._replace_sinks(y, x) if self.sink else y
