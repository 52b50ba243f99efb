"""Protocols: how many images, drawn how, measured with what. A figure means nothing without one.

A result carries its protocol with the hash of its settings, and the hashes of the reference and of
the network that looked at the images. Results in which any of them differ are in no table together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..checkpoint.hashing import text_hash
from ..errors import closest
from ..serialize import canonical_json, plain, pretty_json, write_file
from .figures import Figure

__all__ = ["PROTOCOLS", "Protocol", "Result", "find_protocol", "markdown", "read_result", "table",
           "write_result"]  # fmt: skip

IMAGENET_METRICS = ("fid", "sfid", "inception_score", "precision", "recall")
MODEL_METRICS = ("kl", "top1", "relative_error", "first_divergence", "sqnr_db")
BUNDLED_METRICS = ("bundled_frechet", "bundled_score", "bundled_precision", "bundled_recall",
                   "bundled_accuracy")  # fmt: skip
METRICS = (*IMAGENET_METRICS, *BUNDLED_METRICS, *MODEL_METRICS)
ADM_REFERENCE = "VIRTUAL_imagenet256_labeled.npz of guided diffusion"


@dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation; None leaves one to the model, whose published value differs from
    size to size, or says that the family has no such setting.

    families: that it is for, () for all. images: in all, the classes in turn; per_class: of each
    class, 0 for as many as it happens to be. size: pixels of a side, after ``resize`` where the
    model's images have another. space: the feature space. compared: images whose tokens are
    compared with the float model's.
    """

    name: str
    images: int
    per_class: int
    metrics: tuple[str, ...]
    space: str
    reference: str
    families: tuple[str, ...] = ()
    cfg: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    num_iter: int | None = None
    size: int | None = None
    resize: str = "none"
    compared: int = 16

    def __post_init__(self) -> None:
        """ValueError for a metric that there is not."""
        if isinstance(self.metrics, str):
            raise ValueError(
                f"{self.name}: metrics is {self.metrics!r}; wanted a tuple of names. Type "
                f'metrics=("{self.metrics}",)'
            )
        wrong = [name for name in self.metrics if name not in METRICS]
        if wrong:
            raise ValueError(
                f"{self.name}: there is no metric {wrong[0]!r}; wanted some of "
                f"{', '.join(METRICS)}. {closest(wrong[0], METRICS)}"
            )
        object.__setattr__(self, "metrics", tuple(self.metrics))  # a list has no hash

    @property
    def hash(self) -> str:
        """SHA-256 over all settings."""
        return text_hash(canonical_json(self))

    def sampling(self) -> dict[str, float]:
        """The settings of ``sample_ids`` that it fixes."""
        names = ("cfg", "top_k", "top_p", "temperature", "num_iter")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def with_(self, **changes: Any) -> Protocol:
        """The same with other settings, which have another hash; None changes nothing."""
        given = {name: value for name, value in changes.items() if value is not None}
        if "images" in given and given["images"] != self.images:
            given["per_class"] = 0
        return replace(self, **given)


def _paper(family: str, **more: Any) -> Protocol:
    """50 000 images of ImageNet's classes at 256 pixels, by the evaluator of guided diffusion."""
    return Protocol(
        f"{family}-paper", images=50_000, per_class=50, families=(family,),
        metrics=(*IMAGENET_METRICS, *MODEL_METRICS), space="inception", reference=ADM_REFERENCE,
        size=256, **more,
    )  # fmt: skip


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({
    protocol.name: protocol
    for protocol in (
        Protocol("smoke", images=64, per_class=0, metrics=(*BUNDLED_METRICS, *MODEL_METRICS),
                 space="bundled", reference="training images of the bundled model"),
        _paper("var", cfg=1.5, top_k=900, top_p=0.96),
        # Guidance and temperature of RAR, and guidance of PAR and MAR, are those of each size.
        _paper("rar", top_k=0, top_p=0.0),
        _paper("par", top_k=0, top_p=0.0, resize="bicubic"),
        _paper("mar", temperature=1.0, num_iter=64),
    )
})  # fmt: skip


def find_protocol(name: str) -> Protocol:
    """A protocol by its name. ValueError offers the nearest."""
    if name not in PROTOCOLS:
        raise ValueError(
            f"unknown protocol {name!r}; wanted one of {', '.join(PROTOCOLS)}. "
            f"{closest(name, PROTOCOLS)}"
        )
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Result:
    """What an evaluation found. model: its name; scheme, method: "float" for the float model;
    checkpoint: the hash of a packed one, or ""; sampling: the settings in effect, the model's own
    among them; figures: by name, in the protocol's order."""

    model: str
    scheme: str
    method: str
    stress: float
    seed: int
    protocol: Protocol
    protocol_hash: str
    reference: str
    reference_hash: str
    network_hash: str
    figures: Mapping[str, Figure]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)


def _difference(first: Result, other: Result) -> str | None:
    """Why two results are not comparable, or None."""
    if first.protocol.name != other.protocol.name:
        return f"protocols {first.protocol.name!r} and {other.protocol.name!r}"
    if first.protocol_hash != other.protocol_hash:
        a, b = plain(first.protocol), plain(other.protocol)
        changed = [f"{key} {a[key]} and {b[key]}" for key in a if a[key] != b[key]]
        return f"settings of {first.protocol.name!r}: {', '.join(changed) or 'hashes'}"
    if first.reference_hash != other.reference_hash:
        return (f"references {first.reference!r} ({first.reference_hash[:12]}) and "
                f"{other.reference!r} ({other.reference_hash[:12]})")  # fmt: skip
    if first.network_hash != other.network_hash:
        return (f"weights of the feature network ({first.network_hash[:12]} and "
                f"{other.network_hash[:12]})")  # fmt: skip
    return None


def table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per result: model, scheme, method, stress, seed, and a value for every figure.

    ValueError if two of them are not comparable: other protocols or settings, another reference,
    another network.
    """
    for other in results[1:]:
        reason = _difference(results[0], other)
        if reason:
            raise ValueError(
                f"table: results of {results[0].model} {results[0].scheme} and {other.model} "
                f"{other.scheme} cannot be compared: they have different {reason}. Evaluate both "
                "under one protocol"
            )
    return [
        {"model": r.model, "scheme": r.scheme, "method": r.method, "stress": r.stress,
         "seed": r.seed} | {name: figure.value for name, figure in r.figures.items()}
        for r in results
    ]  # fmt: skip


def markdown(results: Sequence[Result]) -> str:
    """``table`` as Markdown, the protocol below it; "-" where a figure does not exist."""
    rows = table(results)
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [names, ["---"] * len(names)]
    lines += [[cell(row.get(name)) for name in names] for row in rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if not results:
        return text
    first = results[0]
    return text + (
        f"\nProtocol {first.protocol.name} ({first.protocol_hash[:12]}), {first.protocol.images} "
        f"images, reference {first.reference} ({first.reference_hash[:12]}).\n"
    )


def write_result(path: str | Path, result: Result) -> Path:
    """Write a result as JSON, whole or not at all."""
    return write_file(path, pretty_json(result))


def read_result(path: str | Path) -> Result:
    """Read what ``write_result`` wrote. ValueError if it is something else or was changed."""
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        settings = {key: tuple(value) if isinstance(value, list) else value
                    for key, value in data["protocol"].items()}  # fmt: skip
        figures = {
            name: Figure(f["value"], f["interval"] and tuple(f["interval"]), f["note"])
            for name, f in data["figures"].items()
        }
        given = {f.name: data[f.name] for f in fields(Result)}
        result = Result(**given | {"protocol": Protocol(**settings), "figures": figures})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no result; wanted what `ptq4arvg evaluate --out` writes ({error})"
        ) from None
    if result.protocol.hash != result.protocol_hash:
        raise ValueError(f"{path}: its protocol was changed after it was written; evaluate again")
    return result
