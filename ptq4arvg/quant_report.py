"""What a quantization did and how to repeat it: the report per linear, and the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .calibration import Calibration
from .numerics import Scheme, get_scheme

__all__ = ["LayerReport", "QuantReport", "make_recipe"]


@dataclass
class LayerReport:
    """What became of one linear. sqnr_db: of its output over the calibration sample, with the
    float model's inputs; bytes_before: the weight in half precision; bytes_after: as packed."""

    name: str
    role: str
    w_bits: int
    a_bits: int
    kernel: str
    sqnr_db: float
    bytes_before: int
    bytes_after: int
    transform: dict[str, Any] = field(default_factory=dict)


@dataclass
class QuantReport:
    """What ``quantize_`` did, layer by layer; ``kept`` names the linears left in float; allocation:
    of mixed precision, the target, the mean bits reached, the scheme and the harms of each linear;
    decoder: of a tokenizer's decoder in integers, what `decoder.quantize_decoder_` returned.
    """

    model: str
    scheme: str
    method: str
    options: dict[str, Any]
    seed: int
    stress: float
    calibration: str
    layers: list[LayerReport]
    kept: list[str]
    allocation: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None

    @property
    def sqnr_db(self) -> float:
        """Mean over the layers, in dB."""
        return sum(layer.sqnr_db for layer in self.layers) / max(len(self.layers), 1)

    @property
    def worst(self) -> LayerReport:
        """The layer of lowest SQNR."""
        return min(self.layers, key=lambda layer: layer.sqnr_db)

    @property
    def mean_bits(self) -> float:
        """Bits of a quantized weight on average, 0 if there are none."""
        weights = sum(layer.bytes_before for layer in self.layers)
        bits = sum(layer.bytes_before * layer.w_bits for layer in self.layers)
        return bits / max(weights, 1)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights in memory."""
        return sum(layer.bytes_after for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, with the sums added."""
        sums = {"sqnr_db": self.sqnr_db, "worst_sqnr_db": self.worst.sqnr_db,
                "worst_layer": self.worst.name, "weight_bytes": self.weight_bytes}  # fmt: skip
        return asdict(self) | sums


def make_recipe(
    report: QuantReport, calibration: Calibration, ignore: Sequence[str] = (),
    overrides: Mapping[str, str | Scheme] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a checkpoint says of how it was made, as plain data."""
    from . import __version__

    named = {k: get_scheme(v).name for k, v in (overrides or {}).items()}
    return {
        "model": report.model, "stress": report.stress, "scheme": report.scheme,
        "method": report.method, "options": report.options, "ignore": list(ignore),
        "overrides": named,
        "calibration": {"seed": calibration.seed, "select": calibration.select,
                        "samples": calibration.samples, "rows": len(calibration.labels),
                        "hash": report.calibration},
        "version": __version__,
    }  # fmt: skip
