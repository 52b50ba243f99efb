"""`ptq4arvg models` and `ptq4arvg methods`."""

from __future__ import annotations

__all__ = ["run_methods", "run_models"]


def run_models() -> None:
    """Print the names that `load_model` knows."""
    from ..models import list_models

    for name in list_models():
        print(name)


def run_methods() -> None:
    """Print every method with its summary and its options' defaults."""
    from ..methods import METHODS

    for name, method in sorted(METHODS.items()):
        print(f"{name}: {method.summary}")
        for option, value in method().options().items():
            print(f"    {option}={value}")
