"""`ptq4arvg models` and `ptq4arvg methods`."""

from __future__ import annotations

__all__ = ["run_methods", "run_models"]


def run_models() -> None:
    """Print what `load_model` knows: name, size, image, sequence, files."""
    from ..models import list_models

    for m in list_models():
        size, side = f"{m.parameters / 1e6:.0f} M parameters", f"{m.image_size}x{m.image_size}"
        files = m.weights if m.weights == "bundled" else f"{m.weights} ({m.licence})"
        print(f"{m.name:12} {size:>17}  {side:>9} pixels  {m.tokens:5} tokens  {files}")


def run_methods() -> None:
    """Print every method with its summary, where it runs, and its options' defaults."""
    from ..methods import METHODS

    for name, method in sorted(METHODS.items()):
        where = "integers" if method.integer else f"simulation only: {method.no_integer}"
        print(f"{name}: {method.summary} ({where})")
        for option, value in method().options().items():
            print(f"    {option}={value}")
