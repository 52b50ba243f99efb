"""bench/tune.py without a device: stand-ins for its kernels, real files, real operators."""

import csv
import os

import device as bench_device
import pytest
import shapes
import tile_table
import tune
from device import Device
from measurements import Measurements, Size

SHARED = {"date": "2026-01-02", "commit": "abc", "device": "H100", "torch": "2.13", "sm": 90}
TABLE = 'ROW(80, 999, 1, any, 1, any, 1, any, 4, 8, 1, 4, "tiled.64x64x64", "takes every size")\n'
GRID = ["--shapes", "tiny", "--m", "1,64", "--bits", "8,4"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    layers = (shapes.Linear("qkv", 48, 32), shapes.Linear("proj", 32, 32),
              shapes.Linear("again", 48, 32))  # fmt: skip
    monkeypatch.setitem(shapes._MODELS, "tiny", lambda: layers)


@pytest.fixture
def device(monkeypatch):
    """The CPU as a device with two kernels, of which one takes 32 rows at most."""
    real = tune.our_cases

    def cases(linear, m, bits, device):
        def limited(make):
            def new():
                call = make()

                def run():
                    name = os.environ.get(tune.FORCE)  # none in a replay
                    if name == "decode" and m > 32:
                        raise ValueError(f"gemm: {tune.FORCE} is 'decode', which takes 32 rows")
                    return call()

                return run

            return new

        found = real(linear, m, bits, "cpu")
        return {name: type(c)(limited(c.make), c.weight_bytes, c.bits) for name, c in found.items()}

    class OnCpu(tune.Bench):
        def __init__(self, kernels, *_):
            super().__init__(kernels, Device("cpu"), 1 << 14)

    monkeypatch.setattr(tune, "our_cases", cases)
    real_measure = bench_device.measure
    monkeypatch.setattr(bench_device, "measure", lambda *args, **options: real_measure(
        *args, **options | {"max_repeats": 5, "sample": 1e-5}))  # fmt: skip
    monkeypatch.setattr(Device, "l2_bytes", lambda self: 0)
    monkeypatch.setattr(tune, "Bench", OnCpu)
    monkeypatch.setattr(tune, "kernel_names", lambda: ["decode", "tiled.64x64x64"])
    monkeypatch.setattr(tune, "stamp", lambda *_: SHARED)
    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune.torch.cuda, "get_device_capability", lambda: (9, 0))
    return cases


@pytest.fixture
def run(tmp_path):
    table = tmp_path / "table.inc"
    table.write_text(TABLE)

    def call(*arguments):
        files = ["--measurements", str(tmp_path / "t.csv"), "--table", str(table)]
        return tune.main([*GRID, "--budget", "0.1", "--quiet", *files, *arguments])

    call.table, call.csv = table, tmp_path / "t.csv"
    return call


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_grid_has_each_size_once():
    sizes = tune.grid(["tiny"], [1, 64], [8, 4], ["codes", "float32"])
    assert len(sizes) == len(set(sizes)) == 2 * 2 * 2 * 2
    weights = [(size.n, size.k, size.bits) for size in sizes]
    assert len(set(weights)) == sum(a != b for a, b in zip(weights, [None, *weights], strict=False))


def test_measure_and_write(device, run, capsys):
    assert run("--budget", "60") == 0
    rows = rows_of(run.csv)
    assert len(rows) == 2 * 2 * 2 * 2 * 2
    timed = [row for row in rows if row["median_us"]]
    assert all(float(row["p10_us"]) <= float(row["median_us"]) for row in timed)
    refused = {(row["kernel"], row["M"]) for row in rows if row["note"]}
    assert refused == {("decode", "64")}
    _, table = tile_table.parse(run.table.read_text())
    assert table[-1:] == tile_table.parse(TABLE)[1]
    assert all(row.reason.startswith(tile_table.MEASURED) for row in table[:-1])
    # Which of the two wins at one row, the clock says; then both may share a row of the table.
    of_64 = {row.kernel for row in table[:-1] if row.m[0] <= 64 <= row.m[1]}
    assert of_64 == {"tiled.64x64x64"}
    assert str(run.table) in capsys.readouterr().out
    assert tune.FORCE not in os.environ


def test_the_budget_ends_a_run_and_the_next_goes_on(device, run, capsys, monkeypatch):
    assert run("--budget", "1e-9") == 3
    assert "16 of 16 sizes are missing" in capsys.readouterr().err
    assert run.table.read_text() == TABLE
    real, seen = tune.Bench.rows, []

    def rows(self, size, budget):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(size)
        return real(self, size, budget)

    monkeypatch.setattr(tune.Bench, "rows", rows)
    assert run("--budget", "60") == 130
    assert len(Measurements(run.csv).sizes()) == 3
    monkeypatch.setattr(
        tune.Bench, "rows", lambda self, size, b: seen.append(size) or real(self, size, b)
    )
    assert run("--budget", "60") == 0
    assert len(seen) == len(set(seen)) == 16


def test_a_write_that_was_cut_off_is_measured_again(device, run):
    assert run("--budget", "60") == 0
    text = run.csv.read_text()
    run.csv.write_text(text[:-5])
    kept = Measurements(run.csv)
    assert len(kept.sizes()) == 15 and run.csv.read_text().endswith("\n")
    assert Measurements(run.csv).rows == kept.rows


def test_other_machines_write_the_table(device, run, monkeypatch):
    assert run("--budget", "60") == 0
    wanted = run.table.read_text()
    run.table.write_text(TABLE)
    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: False)
    assert run("--table-only") == 0
    assert run.table.read_text() == wanted


def test_measurements_from_elsewhere_are_not_continued(device, run, monkeypatch, capsys):
    assert run("--budget", "60") == 0
    monkeypatch.setattr(tune, "stamp", lambda *_: SHARED | {"device": "H200"})
    assert run() == 2
    assert "measured with device H100, this is H200" in capsys.readouterr().err


def stub_cases(monkeypatch, call):
    case = type("Case", (), {"make": staticmethod(lambda: call), "weight_bytes": 8})
    monkeypatch.setattr(tune, "our_cases", lambda *_: {"gemm.w8": case})
    return Size(48, 32, 8, 1, "float32")


@pytest.mark.parametrize(("kernels", "wrong"), [("abc", "b"), ("ab", "ab")])
def test_a_kernel_with_another_result_has_no_time(device, monkeypatch, kernels, wrong):
    """Of two that differ, neither has one."""
    size = stub_cases(monkeypatch, lambda: tune.torch.tensor(os.environ.get(tune.FORCE) == "b"))
    rows = tune.Bench(list(kernels), Device("cpu")).rows(size, 0.01)
    notes = {row["kernel"]: row["note"] for row in rows if "note" in row}
    assert set(notes) == set(wrong)
    assert set(notes.values()) == {"failed: its result is not that of most other kernels"}
    assert {row["kernel"] for row in rows if "median_us" in row} == set(kernels) - set(wrong)


@pytest.mark.parametrize("answers", [True, False])
def test_a_kernel_that_fails_has_a_note_while_the_device_answers(device, monkeypatch, answers):
    def fail():
        if os.environ.get(tune.FORCE) == "b":
            raise RuntimeError("out of registers\nand more")
        return tune.torch.zeros(1)

    size = stub_cases(monkeypatch, fail)
    monkeypatch.setattr(Device, "answers", lambda self: answers)
    bench = tune.Bench(["a", "b"], Device("cpu"))
    if not answers:
        with pytest.raises(RuntimeError, match="out of registers"):
            bench.rows(size, 0.01)
        return
    rows = {row["kernel"]: row for row in bench.rows(size, 0.01)}
    assert rows["b"]["note"] == "failed: out of registers" and "median_us" in rows["a"]


def test_no_kernels_for_the_device(device, run, monkeypatch, capsys):
    monkeypatch.setattr(tune, "kernel_names", list)
    assert run() == 2
    assert "no CUDA kernels for this device" in capsys.readouterr().err


def test_kernels_of_the_build(monkeypatch):
    def entry(name, available=True, device="cuda", op="gemm", bits=8):
        return {
            "name": name,
            "op": op,
            "device": device,
            "weight_bits": bits,
            "available": available,
        }

    found = [entry("gemm.w8.decode"), entry("gemm.w6.decode", bits=6), entry("gemm.w8.x", False),
             entry("gemm.w8.avx2", device="cpu"), entry("gemm.w8.tiled.64x64x64")]  # fmt: skip
    monkeypatch.setattr(tune.ops, "list_kernels", lambda: found)
    assert tune.kernel_names() == ["decode", "tiled.64x64x64"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "torch sees no CUDA device"),
        (["--table-only"], None),
        (["--bits", "5"], "--bits: unknown '5'"),
        (["--outputs", "float16"], "--outputs: unknown"),
        (["--m", "0"], "--m: '0'"),
        (["--shapes", "tin"], "Closest: 'tiny'"),
        (["--budget", "0"], "--budget wants seconds"),
        (["--tolerance", "-1"], "--tolerance a fraction"),
    ],
)
def test_bad_arguments(run, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: False)
    status = run(*arguments)
    said = capsys.readouterr().err
    assert status == (2 if message else 3)
    assert (message or "16 of 16 sizes are missing") in said


def test_a_file_of_something_else(run, capsys):
    run.csv.write_text("a,b\n1,2\n")
    assert run("--table-only") == 2
    assert "has other columns" in capsys.readouterr().err
