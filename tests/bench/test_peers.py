"""bench/peers.py on the CPU with stand-in peers: rows, ratios, refusals, errors, an interrupt."""

import copy
import csv

import peers
import pytest
import shapes
from device import Device
from peer import Absent
from peer_adapters import PEERS

CPU = Device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    layers = (shapes.Linear("qkv", 48, 64), shapes.Linear("fc1", 64, 64, "gelu_tanh"))
    monkeypatch.setitem(shapes._MODELS, "tiny", lambda: layers)


def stand_in(monkeypatch, name, **methods):
    """A peer that is torch's under another name, with some methods of its own."""
    peer = copy.copy(PEERS["torch.int_mm"])
    peer.name = name
    for method, function in methods.items():
        setattr(peer, method, function)
    monkeypatch.setitem(PEERS, name, peer)
    return peer


def run(tmp_path, *arguments):
    out = tmp_path / "p.csv"
    common = ["--device", "cpu", "--shapes", "tiny", "--budget", "0.01", "--quiet"]
    status = peers.main([*common, "--out", str(out), *arguments])
    with out.open() as file:
        return status, list(csv.DictReader(file))


def test_rows_and_ratios(tmp_path, monkeypatch, capsys):
    stand_in(monkeypatch, "other")
    status, rows = run(tmp_path, "--m", "2,20", "--bits", "8,4", "--layers", "qkv",
                       "--peers", "torch.int_mm,other")  # fmt: skip
    assert status == 0
    assert list(rows[0]) == peers.columns(["torch.int_mm", "other"])
    timed = [row for row in rows if row["median_us"]]
    assert len(timed) == 2 * 2 * (3 + 1)  # M, input; candidates of 8 and of 4 bits
    for row in timed:
        assert float(row["p10_us"]) <= float(row["median_us"]) <= float(row["p90_us"])
        assert float(row["roofline_us"]) > 0 and int(row["repeats"]) >= 5
        share = float(row["roofline_us"]) / float(row["median_us"])
        assert float(row["roofline_share"]) == pytest.approx(share, rel=1e-3)
        ours = row["candidate"].startswith("ours")
        assert bool(row["kernel"]) == ours
        assert bool(row["x_other"]) == bool(row["x_torch.int_mm"]) == (ours and row["bits"] == "8")
    assert {row["given"] for row in timed} == {"codes", "floats"}
    assert "ours.w4" in capsys.readouterr().out


def test_peers_that_are_absent_wrong_or_refuse(tmp_path, monkeypatch, capsys):
    def absent(libraries):
        raise Absent("no module; type: pip install gone")

    def refuse(*_):
        raise RuntimeError("M > 16 wanted\nand more")

    stand_in(monkeypatch, "gone", find=absent)
    stand_in(monkeypatch, "refuses", multiply=refuse)
    stand_in(monkeypatch, "wrong", multiply=lambda *a: PEERS["torch.int_mm"].multiply(*a) * 2)
    status, rows = run(tmp_path, "--m", "2", "--bits", "8", "--layers", "qkv",
                       "--peers", "gone,refuses,wrong")  # fmt: skip
    notes = {row["candidate"]: row["note"] for row in rows if row["note"]}
    assert status == 0 and set(notes) == {"gone", "refuses", "wrong"}
    assert notes["gone"] == "absent: no module; type: pip install gone"
    assert notes["refuses"] == "n/a: M > 16 wanted"
    assert notes["wrong"].startswith("n/a: wrong result: given codes")
    assert not [row for row in rows if row["candidate"] in notes and row["median_us"]]
    assert "pip install gone" in capsys.readouterr().out


def test_our_own_errors_are_not_hidden(tmp_path, monkeypatch):
    def broken(self, *_):
        raise RuntimeError("our kernel failed")

    monkeypatch.setattr(peers.Bench, "measure_limits", lambda *_: None)
    monkeypatch.setattr(peers.Ours, "multiply", broken)
    status, rows = run(tmp_path, "--m", "2", "--bits", "8", "--peers", "torch.int_mm")
    assert status == 1
    assert [(row["layer"], row["note"]) for row in rows] == [
        ("qkv", "failed: our kernel failed"), ("fc1", "failed: our kernel failed"),
    ]  # fmt: skip


def test_the_roofline():
    cell = peers.Cell("gemm", "", shapes.Linear("", 100, 200), 10)
    memory = peers.Bench(CPU, bytes_s=1e9)
    assert memory.roofline(cell, 4, "codes") == pytest.approx((10000 + 2000 + 2000) / 1e9)
    assert memory.roofline(cell, 8, "floats") == pytest.approx((20000 + 4000 + 2000) / 1e9)
    assert peers.Bench(CPU, ops_s=1e6).roofline(cell, 8, "codes") == pytest.approx(0.4)


def test_limits_are_measured_without_what_is_wrong(monkeypatch):
    wrong = stand_in(monkeypatch, "wrong", multiply=lambda *_: peers.torch.zeros(1))
    bench, seen = peers.Bench(CPU, [peers.Ours(4), wrong]), []
    real = Device.time
    monkeypatch.setattr(Device, "time", lambda self, calls, budget: (
        seen.extend(calls), real(self, calls, budget))[1])  # fmt: skip
    bench.measure_limits(1, 64, 0.0)
    assert seen == ["copy", "ours.w8"]
    assert bench.bytes_s > 1e6 and bench.ops_s > 1e6


def test_the_list(tmp_path, monkeypatch, capsys):
    assert peers.main(["--list"]) == 1
    said = capsys.readouterr().out
    assert "torch.int_mm: here\n" in said and "marlin.w4a8: absent, vllm" in said
    stand_in(monkeypatch, "other", install="pip install other")
    assert peers.main(["--list", "--peers", "other"]) == 0
    assert capsys.readouterr().out == "other: here\n"


def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch):
    real, seen = peers.Bench.measured, []

    def measured(self, step, tick):
        seen.append(step)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(self, step, tick)

    monkeypatch.setattr(peers.Bench, "measured", measured)
    status, rows = run(tmp_path, "--m", "2", "--bits", "8", "--peers", "torch.int_mm")
    assert status == 130 and {row["layer"] for row in rows} == {"qkv"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "torch.intmm"], "Closest: 'torch.int_mm'"),
        (["--bits", "5"], "--bits: unknown '5'"),
        (["--m", "x"], "--m: 'x'"),
        (["--budget", "0"], "--budget wants a number above 0"),
        (["--libraries", "nowhere"], "nowhere is no folder"),
        (["--device", "cuda"], "sees 0 CUDA devices here"),
    ],
)
def test_bad_arguments(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(peers.torch.cuda, "is_available", lambda: False)
    assert peers.main(["--device", "cpu", "--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err
