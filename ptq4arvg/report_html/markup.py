"""HTML as text that is escaped unless it was made here."""

from __future__ import annotations

import html

__all__ = ["Markup", "join", "tag"]

_VOID = ("br", "img", "input", "meta")


class Markup(str):
    """Text that is HTML already."""


def _text(value: object) -> str:
    return value if isinstance(value, Markup) else html.escape(str(value))


def join(*parts: object) -> Markup:
    """Parts one after the other; None is left out, what is no Markup is escaped."""
    return Markup("".join(_text(part) for part in parts if part is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Attributes: a trailing "_" is dropped, another "_" is "-"; None leaves one out,
    True is the bare name."""
    head = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        head += f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
    if name in _VOID:
        return Markup(f"<{head}>")
    return Markup(f"<{head}>{join(*children)}</{name}>")
