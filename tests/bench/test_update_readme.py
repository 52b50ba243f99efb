"""The script that puts the demo's table into the README."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "bench" / "update_readme.py"
    spec = importlib.util.spec_from_file_location("update_readme", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_goes_between_the_markers(script):
    text = f"a\n{script.BEGIN}\nold\n{script.END}\nb\n"
    once = script.replace_table(text, "| new |\n")
    assert once == f"a\n{script.BEGIN}\n| new |\n{script.END}\nb\n"
    assert script.replace_table(once, "| new |\n") == once


@pytest.mark.parametrize(
    "text", ["", "<!-- demo-table -->", "<!-- /demo-table --><!-- demo-table -->"]
)
def test_missing_markers_are_an_error(script, text):
    with pytest.raises(ValueError, match="wants one"):
        script.replace_table(text, "")


def test_the_readme_has_its_markers(script):
    script.replace_table((ROOT / "README.md").read_text(), "")
