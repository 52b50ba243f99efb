"""The script that puts the demo's table into the README."""

import importlib.util
from pathlib import Path

import pytest

from ptq4arvg.models import BUNDLED

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "bench" / "update_readme.py"
    spec = importlib.util.spec_from_file_location("update_readme", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BEGIN, END = "<!-- demo-table -->", "<!-- /demo-table -->"


def test_the_table_goes_between_the_markers(script):
    text = f"a\n{BEGIN}\nold\n{END}\nb\n"
    once = script.replace_table(text, "demo", "| new |\n")
    assert once == f"a\n{BEGIN}\n| new |\n{END}\nb\n"
    assert script.replace_table(once, "demo", "| new |\n") == once


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN])
def test_missing_markers_are_an_error(script, text):
    with pytest.raises(ValueError, match="wants one"):
        script.replace_table(text, "demo", "")


def test_the_readme_has_its_markers(script):
    others = [f"demo-{name}" for name in BUNDLED if name != "var-tiny"]
    for name in ("demo", *script.TABLES, *others):
        script.replace_table((ROOT / "README.md").read_text(), name, "")


def test_the_ablation_table_has_means_and_ranges(script):
    rows = [
        {"stress": "0.0", "seed": "", "variant": "float", "kl": ""},
        {"stress": "0.0", "seed": "0", "variant": "W6A6", "kl": "0.1"},
        {"stress": "0.0", "seed": "1", "variant": "W6A6", "kl": "0.3"},
        {"stress": "30.0", "seed": "0", "variant": "W6A6", "kl": "0.5"},
    ]
    lines = script.ablation_table(rows).splitlines()
    assert lines[0] == "| KL, mean of 2 seeds (range) | plain | stressed 30 |"
    assert lines[2:] == ["| W6A6 | 0.2 (0.1 to 0.3) | 0.5 (0.5 to 0.5) |"]


def test_the_mixed_table_has_means_and_megabytes(script):
    def row(model, seed, kl, error):
        return {"model": model, "seed": seed, "variant": "5 bits", "kl": kl,
                "relative_error": error, "weight_bytes": "2000000"}  # fmt: skip

    rows = [row("a", "0", "0.1", "9"), row("a", "1", "0.3", "9"), row("b", "0", "", "0.5")]
    lines = script.mixed_table(rows).splitlines()
    assert lines[0] == "| mean of 2 seeds (MB) | `a` | `b` |"
    assert lines[2:] == ["| 5 bits | 0.2 (2.00) | 0.5 (2.00) |"]
