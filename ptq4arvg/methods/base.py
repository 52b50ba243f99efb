"""What a quantization method is: choices that the pipeline follows, and a transform per linear."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import closest
from ..numerics import (
    Scheme,
    affine_grid,
    quantize_weight,
    rotation_block,
    round_to_grid,
    weight_range,
)
from ..reference import MAX_ROTATION, rotate
from ..statistics import InputStatistics
from ..token_scales import GRANULARITIES

__all__ = ["METHODS", "LayerView", "Method", "Transform", "get_method", "register"]


# A rotation costs more than a transform that is folded, and one in wide blocks may cost a pass over
# the input more than one in narrow blocks, so each has to bring something.
ROTATION_PAYS = 0.97


@dataclass(frozen=True)
class LayerView:
    """One linear as a method sees it.

    weight float32 [N, K]; stats: its input over the calibration rows; foldable: whether a scale
    of that input can be absorbed upstream; shiftable: whether a shift can, too. fused_rotation: the
    most columns of a block that what makes the input's codes can rotate; wider takes a pass more.
    """

    name: str
    role: str
    weight: Tensor
    stats: InputStatistics
    foldable: bool
    shiftable: bool = True
    fused_rotation: int = MAX_ROTATION

    @cached_property
    def output(self) -> Tensor:
        """The linear's output for the sample, without its bias, float32 [M, N]."""
        return F.linear(self.stats.sample, self.weight.float())


@dataclass(frozen=True)
class Transform:
    """Make a linear's input ``u / scale - shift`` (float64 [K] each); ``record`` is for reports.

    rotation: then rotate that in blocks of so many columns as it is quantized (`reference.rotate`);
    the model absorbs the scale and the shift, but nothing of the rotation.
    """

    scale: Tensor
    shift: Tensor
    record: dict[str, Any] = field(default_factory=dict)
    rotation: int = 0

    @classmethod
    def none(cls, columns: int, rotation: int = 0) -> Transform:
        """One that scales and shifts nothing of so many columns."""
        one = torch.ones(columns, dtype=torch.float64)
        return cls(one, torch.zeros_like(one), rotation=rotation)

    @property
    def folds(self) -> bool:
        """Whether there is anything for the model to absorb."""
        return bool((self.scale != 1).any() or self.shift.any())

    def weight(self, weight: Tensor) -> Tensor:
        """The weight [N, K] that goes with the transformed input."""
        scaled = weight.double() * self.scale
        if self.rotation:  # whose matrix times its transpose is ``rotation``
            scaled = rotate(scaled, self.rotation) / self.rotation
        return scaled.to(weight.dtype)

    def input(self, x: Tensor) -> Tensor:
        """The transformed input, of float32 x [..., K]."""
        scaled = x / self.scale.float() - self.shift.float()
        return rotate(scaled, self.rotation) if self.rotation else scaled

    def statistics(self, stats: InputStatistics) -> InputStatistics:
        """Those of the transformed input, in float32; if rotated, with ranges of the sample."""
        scaled = stats.transformed(self.scale.float(), self.shift.float())
        return scaled.turned(self.rotation) if self.rotation else scaled

    def then(self, scale: Tensor) -> Transform:
        """This transform followed by a further division by ``scale``."""
        return Transform(self.scale * scale, self.shift / scale)


@dataclass(frozen=True)
class Method:
    """Choices common to all methods; subclasses add their own and ``fit``.

    granularity: one input grid per "tensor", per "group" (the paper's groups), per decoding
    "step", per "position", or "auto" (per position, shrunk towards the step's by held-out error).
    activation_range and weight_range: "minmax" or "mse". rounding: of the weights, "nearest",
    "gptq" (see ``rounding.py``), which makes up for each column's error in the later ones,
    "descent", which goes on from there (``descent.py``), or "auto": "descent" for weights of 4
    bits, "gptq" for those of more, where it gains about 1 %.
    bias_correction: add the mean output error over the calibration sample to the bias. rotation: of
    inputs in blocks of up to 128 channels as they are quantized, after the transform or without it,
    whichever measures better: "none", "all", "measured", where it lowers the output error of the
    linear on the sample by 3 %, or "fused", likewise, but only in blocks that what emits the codes
    can rotate on the way (16 channels in a GEMM's epilogue). Of two such widths "measured" takes
    the wide one where that lowers the error by another 3 %. sink: "integer" or "float", how sink
    positions are computed. attention: "float"; "int8", both attention products in 8-bit integers
    over a KV cache of int8 codes, whatever the scheme; or "simulated" quantization of both
    at the scheme's bits. softmax: the grid of the probabilities where they are simulated,
    "uniform", "log_sqrt2", or the "best" of both for every block.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    integer: ClassVar[bool] = True  # whether it has an integer path; otherwise it is simulated
    no_integer: ClassVar[str] = ""  # why it has none
    resumable: ClassVar[bool] = False  # whether ``prepare`` can go on from finished blocks
    turns_inputs: ClassVar[bool] = False  # whether ``prepare`` changes what the linears read
    no_rotation: ClassVar[str] = ""  # why inputs cannot be rotated as well, where they cannot

    granularity: str = "tensor"
    activation_range: str = "minmax"
    weight_range: str = "minmax"
    rounding: str = "nearest"
    bias_correction: bool = False
    rotation: str = "none"
    sink: str = "integer"
    attention: str = "float"
    softmax: str = "best"

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "granularity": GRANULARITIES,
        "activation_range": ("minmax", "mse"),
        "weight_range": ("minmax", "mse"),
        "rounding": ("nearest", "gptq", "descent", "auto"),
        "rotation": ("none", "fused", "measured", "all"),
        "sink": ("integer", "float"),
        "attention": ("float", "int8", "simulated"),
        "softmax": ("best", "uniform", "log_sqrt2"),
    }

    @property
    def rotates(self) -> bool:
        """Whether some inputs may be rotated."""
        return self.rotation != "none"

    def rounding_of(self, bits: int) -> str:
        """How weights of so many bits are rounded: "nearest", "gptq" or "descent"."""
        if self.rounding == "auto":
            return "descent" if bits <= 4 else "gptq"
        return self.rounding

    def __post_init__(self) -> None:
        for option, wanted in self.CHOICES.items():
            value = getattr(self, option)
            if value not in wanted:
                raise ValueError(
                    f"method {self.name!r}: {option} is {value!r}; wanted one of "
                    f"{', '.join(wanted)}. {closest(str(value), wanted)}"
                )
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(option.default, bool) and not isinstance(value, bool):
                raise ValueError(
                    f"method {self.name!r}: {option.name} is {value!r}; wanted True or False"
                )
        if self.no_rotation and self.rotates:
            raise ValueError(
                f"method {self.name!r}: rotation is {self.rotation!r}, but {self.no_rotation}; "
                "wanted none"
            )

    def prepare(
        self, model: Any, plan: list[Any], calibration: Any, batch_size: int = 16,
        progress: Callable[[str, int, int], None] | None = None, parts: Any = None,
    ) -> Method:  # fmt: skip
        """Look at the float model as a whole, before any statistics; the method to go on with.

        May change the model's linears, but not the function that it computes. parts: where a
        ``resumable`` method keeps what it has learned, a ``BlockParts`` or None.
        """
        return self

    def fit(self, layer: LayerView, scheme: Scheme) -> Transform | None:
        """The transform of a linear's input, or None to leave it as it is."""
        return None

    def transform_of(self, layer: LayerView, scheme: Scheme) -> Transform | None:
        """What ``fit`` finds, and a rotation where one is asked for and can be had."""
        found = self.fit(layer, scheme)
        columns = layer.weight.shape[1]
        narrow, wide = rotation_block(columns, layer.fused_rotation), rotation_block(columns)
        if not self.rotates or not wide:
            return found
        plain = Transform.none(columns)
        # What the range of a rotated input is, only its sample tells: so that all are judged by it.
        view = replace(layer, stats=layer.stats.sampled())

        def error(transform: Transform) -> float:
            branch = self.branch(transform.weight(layer.weight).float())
            return self.output_error(view, transform, scheme, branch)

        unturned = error(found or plain)
        least = math.inf if self.rotation == "all" else unturned
        best, scaled, lowest = None, False, math.inf
        blocks = {"fused": [narrow], "all": [wide]}.get(self.rotation, [narrow, wide])
        for block in dict.fromkeys(blocks):
            turned = [replace(t, rotation=block) for t in (plain, found) if t is not None]
            errors = [error(t) for t in turned]
            number = min(range(len(turned)), key=errors.__getitem__)
            lowest = min(lowest, errors[number])
            if errors[number] < ROTATION_PAYS * least:
                best, scaled, least = turned[number], number > 0, errors[number]
        record = {} if found is None else dict(found.record)
        record |= {"error_unrotated": unturned, "error_rotated": least if best else lowest}
        if best is None:
            return found and replace(found, record=record)
        record |= {"rotation": best.rotation, "rotated_after": scaled}
        return replace(best, record=record)

    def branch(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Factors (up [N, r], down [r, K]) of a part of the weight that stays in float, or None.

        It is computed from float inputs; what it leaves of the weight is quantized.
        """
        return None

    def row_range(self, name: str, weight: Tensor, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Range (lo, hi) [N] of each row of a linear's weight [N, K]; x [S, K]: its input."""
        search = self.weight_range == "mse"
        return weight_range(weight, bits, x.square().mean(0) if search else None, search)

    def output_error(
        self, layer: LayerView, transform: Transform, scheme: Scheme,
        branch: tuple[Tensor, Tensor] | None = None,
    ) -> float:  # fmt: skip
        """Mean squared output error of the quantized linear on the sample.

        All ranges from minimum and maximum; one input grid per step, or per tensor if
        ``granularity`` is "tensor". branch: a part of the transformed weight that stays in float.
        """
        stats = transform.statistics(layer.stats)
        lo, hi = stats.lo.amin(1), stats.hi.amax(1)  # [S]
        if self.granularity == "tensor":
            lo, hi = lo.amin().expand(len(lo)), hi.amax().expand(len(hi))
        step, zero = affine_grid(lo, hi, scheme.a_bits)
        at = stats.step[stats.sample_position]
        x_hat = round_to_grid(stats.sample, step[at, None], zero[at, None], scheme.a_bits)
        whole = layer.weight.float()
        weight = transform.weight(whole)
        if branch is not None:
            weight = weight - branch[0] @ branch[1]
        codes, w_scale, _ = quantize_weight(weight, scheme.w_bits, search=False)
        error = F.linear(x_hat, codes.float().mul_(w_scale[:, None])).sub_(layer.output)
        if branch is not None:
            error += F.linear(F.linear(stats.sample, branch[1]), branch[0])
        # What the shift takes off the output: (u / s - z) (W s)^T = u W^T - W (s z).
        error += whole @ (transform.scale * transform.shift).float()
        return error.square_().mean(1).double().mean().item()

    def with_options(self, **options: Any) -> Method:
        """A copy with some options changed; ValueError offers the nearest name for an unknown."""
        known = [f.name for f in fields(self)]
        for name in options:
            if name not in known:
                raise ValueError(
                    f"method {self.name!r} has no option {name!r}; its options are "
                    f"{', '.join(known)}. {closest(name, known)}"
                )
        return replace(self, **options)

    def options(self) -> dict[str, Any]:
        """All options and their values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Class decorator: make the method known by its name."""
    METHODS[method.name] = method
    return method


def get_method(method: str | Method, **options: Any) -> Method:
    """A method by name (or as given), with options changed."""
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(
                f"unknown method {method!r}; wanted one of {', '.join(METHODS)}. "
                f"{closest(method, METHODS)}"
            )
        method = METHODS[method]()
    return method.with_options(**options)
