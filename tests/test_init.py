"""`import ptq4arvg` is immediate: it imports nothing heavy and touches no CUDA."""

import subprocess
import sys
from importlib import metadata

import pytest

import ptq4arvg

HEAVY = ("torch", "numpy", "PIL", "typer", "rich", "yaml", "safetensors", "matplotlib")


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_imports_nothing_heavy():
    code = f"import sys, ptq4arvg; print(*[m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == []


def test_imports_few_modules():
    code = "import sys; n = len(sys.modules); import ptq4arvg; print(len(sys.modules) - n)"
    (added,) = run(code)
    assert int(added) < 60  # a handful of the standard library's; torch alone is over a thousand


@pytest.mark.parametrize("name", ["ops", "load_model", "quantize_"])
def test_public_names_touch_no_cuda(name):
    code = f"import torch, ptq4arvg; ptq4arvg.{name}; print(torch.cuda.is_initialized())"
    assert run(code) == ["False"]


def test_unneeded_packages_stay_out_of_the_core():
    code = (
        "import sys, ptq4arvg; ptq4arvg.load_model, ptq4arvg.quantize_, ptq4arvg.load_quantized; "
        "print(*[m for m in ('typer', 'matplotlib') if m in sys.modules])"
    )
    assert run(code) == []


def test_every_public_name_resolves():
    assert set(ptq4arvg.__all__) <= set(dir(ptq4arvg))
    for name in ptq4arvg.__all__:
        assert getattr(ptq4arvg, name) is not None


def test_unknown_name_offers_the_closest():
    with pytest.raises(AttributeError, match=r"no attribute 'quantise_'\. Closest: 'quantize_'"):
        ptq4arvg.quantise_  # noqa: B018
    assert not hasattr(ptq4arvg, "__wrapped__")


def test_version_is_the_installed_one():
    try:
        installed = metadata.version("ptq4arvg")
    except metadata.PackageNotFoundError:
        pytest.skip("run from a source tree, not installed")
    assert installed == ptq4arvg.__version__
