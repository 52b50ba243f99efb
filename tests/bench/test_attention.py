"""bench/attention.py: arguments, the steps of a model, and what the candidates compute."""

import csv

import attention
import pytest
import torch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "var-d17"], "unknown model 'var-d17'"),
        (["--models", "mar-b"], "--models: mar-b decodes without a KV cache"),
        (["--images", "1,x"], "--images '1,x'; wanted numbers such as 1,16"),
        (["--images", "0"], "--images, --threads and --budget want numbers above 0"),
        (["--budget", "0"], "--images, --threads and --budget want numbers above 0"),
        (["--floats", "float16"], "float16"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert attention.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_steps_are_those_of_the_model():
    var = attention.steps_of("var-d16", 3)
    assert [step.tokens for step in var] == [1, 4, 9, 16, 25, 36, 64, 100, 169, 256]
    assert var[-1].keys == var[-1].positions == 680 and var[0].rows == 6
    par = attention.steps_of("par-xl-4x", 1)
    assert [step.prologue for step in (var[0], par[0])] == ["l2", "rotation"]
    assert attention.steps_of("rar-b", 1)[0].prologue == "layer"
    assert {step.tokens for step in par} == {4} and par[-1].keys == par[-1].positions


@torch.inference_mode()
@pytest.mark.parametrize("prologue", ["l2", "layer", "rotation"])
def test_candidates_attend_alike_but_for_their_caches(prologue):
    """At the first step all of a cache is what the step stores."""
    torch.manual_seed(0)
    step = attention.Step("var", 1, 2, 16, 5, 5, 20, prologue)
    found = {
        name: call().float()
        for name, call in attention.candidates(step, ["float32", "bfloat16"], "cpu").items()
    }
    assert found["int8"].shape == (2, 5, 32)
    for name in ("bfloat16", "int8"):
        assert (found[name] - found["float32"]).norm() < 0.02 * found["float32"].norm()


def test_rows_say_what_was_measured(tmp_path, capsys):
    out = tmp_path / "attention.csv"
    arguments = ["--models", "rar-b", "--images", "1", "--budget", "0.1", "--quiet"]
    assert attention.main([*arguments, "--out", str(out)]) == 0
    assert "all steps" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if row["candidate"] == "int8"]
    assert ours and all(row["kernel"].startswith("attention.") for row in ours)
    assert all(float(row["x_float32"]) > 0 and float(row["x_bfloat16"]) > 0 for row in ours)
    by_name = {row["candidate"]: float(row["cache_mib"]) for row in rows}
    assert by_name["float32"] > 1.9 * by_name["bfloat16"] > 3.5 * by_name["int8"]
