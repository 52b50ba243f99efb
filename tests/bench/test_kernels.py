"""bench/kernels.py on a tiny shape for a moment: columns, ratios, errors, an interrupt."""

import csv

import candidates
import kernels
import pytest
import shapes
from device import Device

from ptq4arvg import ops


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    linears = (
        shapes.Linear("qkv", 48, 32), shapes.Linear("fc1", 64, 32, "gelu_tanh"),
        shapes.Linear("ada_lin", 96, 32, per_token=False),
    )  # fmt: skip
    monkeypatch.setitem(shapes._MODELS, "tiny", lambda: linears)


def run(path, *arguments):
    common = ["--shapes", "tiny", "--budget", "0.01", "--threads", "1", "--quiet"]
    status = kernels.main([*common, "--out", str(path), *arguments])
    with path.open() as file:
        return status, list(csv.DictReader(file))


def test_gemm(tmp_path, capsys):
    status, rows = run(
        tmp_path / "k.csv", "--m", "1,3", "--bits", "8,4", "--peers", "float32,int_mm", "--verbose"
    )
    assert status == 0
    assert list(rows[0]) == kernels.columns(["float32", "int_mm"])
    ops_timed = ("gemm", "gemm_quantize", "separate", "bare")
    names = [f"{op}.w{bits}" for bits in (8, 4) for op in ops_timed]
    ours = [row for row in rows if row["bits"]]
    assert [row["candidate"] for row in ours[:8]] == names
    assert len(ours) == 2 * 2 * 8  # layers of every token, M, candidates
    for row in ours:
        assert float(row["p10_us"]) <= float(row["median_us"]) <= float(row["p90_us"])
        assert float(row["x_float32"]) > 0 and float(row["x_bare"]) > 0
        assert float(row["gops"]) > 0 and int(row["repeats"]) >= 5
        assert bool(row["x_separate"]) == row["candidate"].startswith("gemm_quantize")
        assert row["isa"] == ops.isa() and row["device"] and row["commit"] and row["date"]
    assert {row["candidate"] for row in rows} - set(names) == {"float32", "int_mm"}
    assert "gemm_quantize.w4" in capsys.readouterr().out


def test_gemm_that_rotates(tmp_path):
    status, rows = run(
        tmp_path / "k.csv", "--m", "3", "--bits", "6", "--peers", "int_mm", "--rotate"
    )
    ours = [row for row in rows if row["bits"]]
    assert status == 0
    names = ["gemm.w6", "gemm_quantize.w6.rotated", "separate.w6.rotated", "bare.w6"]
    assert [row["candidate"] for row in ours[:4]] == names
    assert float(ours[1]["x_separate"]) > 0
    cases = candidates.our_cases(shapes.Linear("fc1", 48, 32, "gelu"), 5, 8, "cpu", rotate=True)
    fused, apart = (cases[f"{op}.w8.rotated"].make()() for op in ("gemm_quantize", "separate"))
    assert (fused.int() - apart.int()).abs().max() <= 2  # the product apart is in bfloat16


@pytest.mark.parametrize("op", ["quantize", "norm_quantize"])
def test_row_operators(tmp_path, op):
    status, rows = run(tmp_path / "k.csv", "--op", op, "--m", "2", "--bits", "6",
                       "--peers", "torch,copy")  # fmt: skip
    assert status == 0
    assert [row["candidate"] for row in rows] == [f"{op}.a6", "torch", "copy"]
    assert float(rows[0]["x_torch"]) > 0 and float(rows[0]["bandwidth_share"]) > 0
    assert rows[0]["K"] == "32" and rows[0]["N"] == ""


@pytest.mark.parametrize("op", ["quantize", "norm_quantize"])
def test_row_operators_that_rotate(tmp_path, op):
    status, rows = run(tmp_path / "k.csv", "--op", op, "--m", "2", "--bits", "8",
                       "--peers", "torch,copy", "--rotate")  # fmt: skip
    assert status == 0
    assert [row["candidate"] for row in rows] == [f"{op}.a8.rotated", "torch", "copy"]
    cases, _ = candidates.row_cases(op, 256, 5, [8], ["torch"], "cpu", rotate=True)
    ours, torchs = (case.make()() for case in cases.values())
    # Sums in another order: a level at most.
    assert (ours.int() - torchs.int()).abs().max() <= 1
    assert ours.float().std() > 10


def test_every_peer_runs_or_says_why_not(tmp_path):
    peers = "bfloat16,int_mm,qlinear"
    _, rows = run(tmp_path / "k.csv", "--m", "17", "--bits", "8", "--layers", "fc1", "--cold", "1",
                  "--peers", peers)  # fmt: skip
    found = {row["candidate"]: row for row in rows}
    for peer in peers.split(","):
        assert found[peer]["median_us"] or found[peer]["note"].startswith("n/a")
    assert found["gemm.w8"]["cold"] == "1"


def test_a_chosen_instruction_set(tmp_path):
    before = ops.isa()
    try:
        _, rows = run(tmp_path / "k.csv", "--m", "1", "--bits", "8", "--peers", "float32",
                      "--isa", "scalar")  # fmt: skip
    finally:
        ops.set_isa(before)
    assert {row["isa"] for row in rows} == {"scalar"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "var-16"], "Closest: 'var-d16'"),
        (["--layers", "qvk"], "Closest: 'qkv'"),
        (["--m", "1,x"], "--m: 'x'"),
        (["--bits", "5"], "--bits: unknown '5'"),
        (["--peers", "floa32"], "Closest: 'float32'"),
        (["--op", "quantise"], "Closest: 'quantize'"),
        (["--isa", "mmx"], "mmx"),
        (["--threads", "0"], "above 0"),
        (["--budget", "nan"], "above 0"),
        (["--op", "gemm,quantize"], "--op 'gemm,quantize'; wanted one of gemm"),
        (["--out", "."], ". is a folder; wanted the name of a file"),
        (["--figure", "."], ". is a folder; wanted the name of a file"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert kernels.main(["--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    real, calls = Device.time, []

    def measure(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(Device, "time", measure)
    status, rows = run(tmp_path / "k.csv", "--m", "1", "--bits", "8", "--peers", "float32")
    assert status == 130
    assert {row["layer"] for row in rows} == {"qkv"}


def test_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "f" / "k.png"
    run(tmp_path / "k.csv", "--m", "1,4", "--bits", "8,6", "--peers", "float32", "--figure",
        str(figure))  # fmt: skip
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_figure_without_matplotlib(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert kernels.main(["--quiet", "--figure", "x.png"]) == 2
    assert "pip install" in capsys.readouterr().err
