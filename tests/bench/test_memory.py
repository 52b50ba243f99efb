"""bench/memory.py: arguments, limited generation, and the table."""

import csv
from types import SimpleNamespace

import memory
import pytest

from ptq4arvg.models import build_model
from tests.models.tiny import TINY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "var-tiny"], "is bundled; wanted a published size"),
        (["--model", "var-d17"], "unknown model 'var-d17'"),
        (["--scheme", "W3A8"], "unknown scheme"),
        (["--method", "rnt"], "unknown method 'rnt'"),
        (["--variants", "float16"], "--variants 'float16'; wanted float32, streamed or both"),
        (["--samples", "0"], "samples 0, keep 2; wanted an even number of samples"),
        (["--steps", "-1"], "--steps one that is not negative"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert memory.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_generation_ends_where_it_is_told_to():
    model = build_model("par-test", TINY["par"], seed=0)
    whole = model.config.order
    assert memory._generate(model, 0) == (len(whole.steps), "decoded")
    assert memory._generate(model, 2) == (2, "stopped")
    last = model.transformer.get_submodule(model.linears()[-1].name)
    assert not last._forward_hooks


def test_rows_say_what_was_run(monkeypatch, tmp_path, capsys):
    peaks = {"float32": 1000.0, "streamed": 300.0}

    def child(_argv, variant, _weights):
        row = {"import_mib": 10.0, "steps": 3, "image": "stopped"}
        return row | {"peak_mib": peaks[variant]}

    monkeypatch.setattr(memory, "_run_child", child)
    written = []
    monkeypatch.setattr(memory, "store_weights", lambda *given: written.append(given))
    out = tmp_path / "memory.csv"
    assert memory.main(["--model", "rar-b", "--method", "rtn", "--out", str(out)]) == 0
    assert "streamed W4A8: peak 300 MiB, 0.300 of float32" in capsys.readouterr().out
    first, second = csv.DictReader(out.open())
    assert first["variant"] == "float32" and float(first["ratio"]) == 1
    assert second["method"] == "rtn" and float(second["ratio"]) == 0.3
    assert second["steps"] == "3" and second["image"] == "stopped" and second["commit"]
    assert [given[0] for given in written] == ["rar-b"]


def test_a_lost_process_is_an_error(monkeypatch, capsys):
    lost = SimpleNamespace(returncode=-9, stdout="")
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: lost)
    assert memory.main(["--variants", "float32"]) == 1
    assert "float32: its process ended with status -9" in capsys.readouterr().err
