"""Shapes of the linears of the published models, and the numbers of rows they are called with.

A linear computes y [M, N] = x [M, K] W [N, K]^T. M counts rows of a step: images times two (with
guidance) times the tokens that the step decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ptq4arvg.errors import closest

__all__ = ["DECODE_M", "VAR_SIDES", "Linear", "linears", "names", "parse_m", "var_m"]

# Rows of a step that decodes one token (or a few) for 1 to 256 images.
DECODE_M = (2, 8, 16, 32, 64, 100, 128, 200, 256, 512)
# Side of each scale that VAR decodes at once, for images of 256 pixels.
VAR_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@dataclass(frozen=True)
class Linear:
    """One linear: N outputs, K inputs, and the activation of its epilogue.

    per_token: it sees every token of a step; else one row per image (it reads the class).
    """

    layer: str
    n: int
    k: int
    activation: str = "none"
    per_token: bool = True


def _transformer(c: int, hidden: int, activation: str) -> tuple[Linear, ...]:
    return (
        Linear("qkv", 3 * c, c), Linear("proj", c, c),
        Linear("fc1", hidden, c, activation), Linear("fc2", c, hidden),
    )  # fmt: skip


def _modulated(c: int, vocabulary: int) -> tuple[Linear, ...]:
    return (
        Linear("ada_lin", 6 * c, c, per_token=False),
        Linear("head_ada_lin", 2 * c, c, per_token=False),
        Linear("head", vocabulary, c),
    )


def _var(c: int) -> tuple[Linear, ...]:
    return _transformer(c, 4 * c, "gelu_tanh") + _modulated(c, 4096)


def _rar(c: int, hidden: int) -> tuple[Linear, ...]:
    return _transformer(c, hidden, "gelu") + _modulated(c, 1024)


def _gpt(c: int, hidden: int) -> tuple[Linear, ...]:
    """SwiGLU: w1 and w3 in one linear; their product is no epilogue of one of them."""
    return (
        Linear("qkv", 3 * c, c), Linear("proj", c, c), Linear("w13", 2 * hidden, c),
        Linear("w2", c, hidden), Linear("head", 16384, c),
    )  # fmt: skip


def _mar(c: int, width: int) -> tuple[Linear, ...]:
    """The transformer blocks, then the diffusion head, one row per predicted token."""
    return (
        *_transformer(c, 4 * c, "gelu"),
        Linear("res_mlp1", width, width, "silu"), Linear("res_mlp2", width, width),
        Linear("res_ada_lin", 3 * width, width), Linear("cond_embed", width, c),
    )  # fmt: skip


_MODELS: dict[str, Callable[[], tuple[Linear, ...]]] = {
    **{f"var-d{depth}": lambda depth=depth: _var(64 * depth) for depth in (16, 20, 24, 30, 36)},
    "rar-b": lambda: _rar(768, 3072),
    "rar-l": lambda: _rar(1024, 4096),
    "rar-xl": lambda: _rar(1280, 5120),
    "rar-xxl": lambda: _rar(1408, 6144),
    "llamagen-b": lambda: _gpt(768, 2048),
    "llamagen-l": lambda: _gpt(1024, 2816),
    "par-xl": lambda: _gpt(1280, 3584),
    "par-xxl": lambda: _gpt(1536, 4096),
    "par-3b": lambda: _gpt(3200, 8704),
    "mar-b": lambda: _mar(768, 1024),
    "mar-l": lambda: _mar(1024, 1280),
    "mar-h": lambda: _mar(1280, 1536),
}


def names() -> list[str]:
    """Names of all models whose shapes are known."""
    return list(_MODELS)


def linears(name: str) -> tuple[Linear, ...]:
    """The linears of a model. ValueError offers the closest names for an unknown one."""
    if name not in _MODELS:
        raise ValueError(
            f"unknown shapes {name!r}; known are {', '.join(_MODELS)}. {closest(name, _MODELS)}"
        )
    return _MODELS[name]()


def var_m(images: int, guidance: bool = True) -> tuple[int, ...]:
    """M of VAR's block linears at each scale for ``images`` images."""
    return tuple(images * (1 + guidance) * side * side for side in VAR_SIDES)


def parse_m(text: str) -> list[int]:
    """M values of a comma-separated list of numbers, "decode", "var" and "var:IMAGES"."""
    found: list[int] = []
    for part in text.split(","):
        name, _, images = part.strip().partition(":")
        if name == "decode" and not images:
            found += DECODE_M
        elif name == "var" and (images or "1").isdecimal() and int(images or 1):
            found += var_m(int(images or 1))
        elif name.isdecimal() and int(name) and not images:
            found.append(int(name))
        else:
            raise ValueError(
                f"--m: {part.strip()!r} is no number of rows; wanted numbers above 0, 'decode', "
                "'var' or 'var:IMAGES', separated by commas"
            )
    return sorted(set(found))
