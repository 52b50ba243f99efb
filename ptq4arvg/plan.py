"""Which linears are quantized and to what: patterns, overrides and the errors of both."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import closest
from .numerics import Scheme, get_scheme

__all__ = ["LayerPlan", "make_plan", "match", "patterns", "planned"]


@dataclass(frozen=True)
class LayerPlan:
    """A linear (a family's ``LinearSpec``) and the scheme it gets, None to keep it in float."""

    spec: Any
    scheme: Scheme | None

    @property
    def name(self) -> str:
        """Module path of the linear inside the transformer."""
        return self.spec.name


def planned(plan: Iterable[LayerPlan]) -> list[LayerPlan]:
    """The linears that get a scheme. ValueError if none does."""
    found = [p for p in plan if p.scheme]
    if not found:
        raise ValueError("every linear is ignored, so that none is left to quantize")
    return found


def patterns(given: Iterable[str]) -> list[str]:
    """Patterns of linears; a text is a single one."""
    return [given] if isinstance(given, str) else list(given)


def match(pattern: str, names: Iterable[str], what: str = "pattern") -> set[str]:
    """Names that ``pattern`` selects: an exact name, a shell pattern, or ``re:`` and an expression.

    An expression has to match from the start of the name. A pattern that selects nothing is a
    ValueError that names the closest ones.
    """
    names = list(names)
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise ValueError(f"{what} {pattern!r} is not a regular expression: {error}") from None
        found = {name for name in names if expression.match(name)}
    else:
        found = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
    if not found:
        raise ValueError(
            f"{what} {pattern!r} matched 0 of {len(names)} layers. "
            f"{closest(pattern.removeprefix('re:'), names)} "
            "Patterns: an exact name, 'blocks.*.ffn.fc2', or 're:.*fc2$'; "
            "--dry-run lists all names."
        )
    return found


def make_plan(
    specs: Iterable[Any],
    scheme: str | Scheme,
    ignore: Iterable[str] = (),
    overrides: Mapping[str, str | Scheme] | None = None,
) -> list[LayerPlan]:
    """The plan for all linears of a model. Later overrides win; ``ignore`` wins over all."""
    specs = list(specs)
    names = [spec.name for spec in specs]
    chosen: dict[str, Scheme | None] = dict.fromkeys(names, get_scheme(scheme))
    for pattern, other in (overrides or {}).items():
        for name in match(pattern, names, "override"):
            chosen[name] = get_scheme(other)
    for pattern in patterns(ignore):
        for name in match(pattern, names, "ignore pattern"):
            chosen[name] = None
    return [LayerPlan(spec, chosen[spec.name]) for spec in specs]
