"""bench/decoder.py: arguments, what it measures, and that the images are those of the schemes."""

import csv

import decoder
import pytest
import torch

from ptq4arvg import load_model
from ptq4arvg.models.convolutions import decoder_convolutions
from ptq4arvg.nn import PackedConv2d


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "var-d17"], "unknown model 'var-d17'"),
        (["--images", "1,x"], "--images '1,x'; wanted numbers such as 1,8"),
        (["--images", "0"], "--images, --threads and --budget want numbers above 0"),
        (["--budget", "0"], "--images, --threads and --budget want numbers above 0"),
        (["--floats", "float16"], "float16"),
        (["--schemes", "W8A9"], "Closest: 'W8A8'"),
        (["--schemes", ""], "--schemes is empty; wanted one or more of W8A8"),
        (["--device", "cuda"], "device is 'cuda', and torch"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert decoder.main(["--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err


@torch.inference_mode()
def test_operations_are_those_of_the_convolutions():
    """Two a weight and pixel."""
    model = load_model("rar-tiny")
    rows = decoder.tokens_of(model, 2, seed=0)
    convolutions = decoder_convolutions(model.tokenizer)
    sides = {}

    def note(conv, _args, y):
        sides[conv] = y.shape[2] * y.shape[3]

    handles = [conv.register_forward_hook(note) for conv in convolutions.values()]
    found = decoder.operations(model, rows)
    for handle in handles:
        handle.remove()
    wanted = sum(2 * 2 * sides[conv] * conv.weight.numel() for conv in convolutions.values())
    assert found == pytest.approx(wanted / 1e9)


@torch.inference_mode()
def test_candidates_share_nothing_but_the_transformer():
    made = decoder.Decoders("par-tiny", ["float32"], ["W8A8", "W4A8"], "float32", "cpu")
    kinds = {
        name: {type(c) for c in decoder_convolutions(model.tokenizer).values()}
        for name, model in made.models.items()
    }
    assert kinds == {
        "float32": {torch.nn.Conv2d}, "W8A8": {PackedConv2d}, "W4A8": {PackedConv2d},
    }  # fmt: skip
    assert made.models["W8A8"].transformer is made.models["float32"].transformer
    rows = decoder.tokens_of(made.models["float32"], 2, seed=1)
    assert made.psnr("float32", rows) is None
    assert made.psnr("W8A8", rows) > made.psnr("W4A8", rows) > 30


def test_rows_say_what_was_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(decoder, "CALIBRATION_IMAGES", 4)  # few are enough for rows
    out = tmp_path / "decoder.csv"
    arguments = ["--models", "mar-tiny", "--images", "1,2", "--budget", "0.2", "--quiet"]
    assert decoder.main([*arguments, "--schemes", "w8a8,W6A6", "--out", str(out)]) == 0
    assert "times faster than in floats" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(decoder.COLUMNS)
    assert [row["candidate"] for row in rows] == 2 * ["float32", "bfloat16", "W8A8", "W6A6"]
    for row in rows:
        ours = row["candidate"][0] == "W"
        assert row["kernel"].startswith("conv2d.w") == ours == bool(row["x_bfloat16"])
        assert bool(row["psnr_db"]) == (row["candidate"] != "float32")
        assert float(row["median_ms"]) > 0 and float(row["gops"]) > 0
    assert float(rows[4]["gop"]) == pytest.approx(2 * float(rows[0]["gop"]))


def test_an_interrupted_run_keeps_what_it_has(monkeypatch, tmp_path):
    out, rounds = tmp_path / "decoder.csv", []

    def measured(self, images, budget, tick):
        if rounds:
            raise KeyboardInterrupt
        rounds.append(images)
        return []

    monkeypatch.setattr(decoder.Decoders, "measured", measured)
    monkeypatch.setattr(decoder.Decoders, "__init__", lambda self, name, *_: setattr(
        self, "name", name))  # fmt: skip
    arguments = ["--models", "var-tiny", "--images", "1,2", "--quiet", "--out", str(out)]
    assert decoder.main(arguments) == 130 and out.is_file()
