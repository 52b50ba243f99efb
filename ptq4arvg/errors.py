"""Help for a mistyped name: every error about an unknown name offers the nearest ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `candidates` that look most like `name`, best first; at least one if any.

    Letter case does not matter. A candidate that contains the name is close however long the rest
    of it is: 'fc1' is near 'blocks.0.ffn.fc1'.
    """
    wanted = name.lower()

    def likeness(candidate: str) -> float:
        other = candidate.lower()
        ratio = difflib.SequenceMatcher(None, wanted, other).ratio()
        return ratio + 0.5 * bool(wanted and wanted in other)

    # sorted() is stable, so equally near names keep their order and a message never changes.
    ranked = sorted(dict.fromkeys(candidates), key=likeness, reverse=True)
    close = [candidate for candidate in ranked if likeness(candidate) >= 0.6]
    return (close or ranked[:1])[:count]


def closest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """A sentence for an error message.

    >>> closest("heda", ["head", "blocks.0.ffn.fc1"])
    "Closest: 'head'"
    """
    found = nearest(str(name), map(str, candidates), count)
    if not found:
        return "There are none to choose from"
    return "Closest: " + ", ".join(repr(candidate) for candidate in found)
