"""What all scripts have in common: running as files, and the error for missing data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.zoo.helpers import train
from zoo import check, prepare_data, train_features, train_tokenizer, train_transformer

TRAINERS = [train_tokenizer, train_transformer, train_features]


@pytest.mark.parametrize("module", TRAINERS, ids=lambda module: module.__name__)
def test_missing_data_is_an_error_of_one_line(module, tmp_path, capsys):
    assert train(module, tmp_path / "nowhere", tmp_path / "out") == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: no emoji64.npz in") and "prepare_data.py --out" in error
    assert "\n" not in error and not (tmp_path / "out").exists()


# Runs every script as a file, with nothing of the others left behind.
RUN_ALL = """
import runpy, sys
before = list(sys.path)
for script in sys.argv[1:]:
    sys.path[:] = before
    for name in [n for n in sys.modules if n.split(".")[0] == "zoo"]:
        del sys.modules[name]
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        assert stop.code == 0, script
"""


def test_the_scripts_run_as_files(tmp_path):
    folder = Path(__file__).parents[2] / "zoo"
    scripts = [folder / f"{m.__name__[4:]}.py" for m in (prepare_data, check, *TRAINERS)]
    result = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *map(str, scripts)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage:") == 5
    assert all(f"usage: {script.name}" in result.stdout for script in scripts)
