"""The comparison: cells on disk, resuming, refusals, the summary, the command."""

import csv
import json
import re

import pytest

from ptq4arvg import compare as module
from ptq4arvg.cells import cell_name, inspection_name, read_cells, read_settings, summarize
from ptq4arvg.cli import main
from ptq4arvg.compare import Comparison, parse_method, run_comparison
from ptq4arvg.models import load_model


def small(**changes):
    settings = {
        "models": ("var-tiny",), "methods": ("rtn", "ptq4arvg"), "schemes": ("W6A6",),
        "stresses": (30.0,), "seeds": 1, "samples": 4, "keep": 4, "images": 2,
    }  # fmt: skip
    return Comparison(**(settings | changes))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FLOAT_SEEDS", 2)
        seen = []
        cells = run_comparison(small(), out, on_cell=seen.append)
    assert len(seen) == len(cells) == 4
    return out, cells


def test_every_cell_is_measured_against_the_same_yardstick(measured):
    out, cells = measured
    assert [(c["method"], c["seed"]) for c in cells] == [
        ("float", 0), ("float", 1), ("rtn", 0), ("ptq4arvg", 0),
    ]  # fmt: skip
    float_cells, rtn, ours = cells[:2], cells[2], cells[3]
    assert all(c["kl"] == 0 and c["top1_agreement"] == 1 for c in float_cells)
    assert float_cells[0]["fd"] != float_cells[1]["fd"]  # other images
    assert 0 < ours["kl"] < rtn["kl"]
    assert min(ours["layers"].values()) == ours["worst_sqnr_db"]
    assert set(ours["layers"]) == set(ours["transforms"])
    names = sorted(path.stem for path in (out / "images").glob("*.png"))
    assert names == sorted(cell_name(c) for c in cells if c["seed"] == 0)
    assert [path.name for path in (out / "inspection").iterdir()] == ["var-tiny_30_W6A6.json"]


def test_a_second_run_measures_what_is_missing_only(measured, monkeypatch):
    out, cells = measured
    monkeypatch.setattr(module, "FLOAT_SEEDS", 2)
    gone = out / "cells" / f"{cell_name(cells[3])}.json"
    gone.unlink()
    look = next((out / "inspection").iterdir())
    before = look.stat().st_mtime_ns
    seen = []
    again = run_comparison(small(), out, on_cell=seen.append)
    assert look.stat().st_mtime_ns == before
    assert [c["method"] for c in seen] == ["ptq4arvg"]
    timing = {"seconds_per_image": 0, "quantize_seconds": 0, "cell_seconds": 0}
    assert [c | timing for c in again] == [c | timing for c in cells]


def test_a_folder_without_its_inspection_gets_it_alone(measured, monkeypatch):
    out, _ = measured
    monkeypatch.setattr(module, "FLOAT_SEEDS", 2)
    look = next((out / "inspection").iterdir())
    before = look.read_bytes()
    look.unlink()
    seen = []
    run_comparison(small(), out, on_cell=seen.append)
    assert not seen and look.read_bytes() == before


def test_the_scheme_looked_into():
    assert small().inspected.name == small(schemes=("W8A8", "W6A6")).inspected.name == "W6A6"
    assert small(schemes=("5.5", "W4A8", "W8A8")).inspected.name == "W4A8"
    assert small(schemes=("5.5", "5")).inspected.name == "5.5 bits"
    assert small(methods=("rtn",)).inspected is None
    assert inspection_name("m", 0.0, "5.5 bits") == "m_0_5.5-bits"


def test_other_settings_do_not_mix(measured):
    out, _ = measured
    with pytest.raises(ValueError, match="holds cells of keep 4, not 2, which are not comparable"):
        run_comparison(small(keep=2), out)
    assert len(read_cells(out)) == 4


def test_a_refusal_is_a_cell_with_its_reason(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("this width has no Hadamard matrix")

    monkeypatch.setattr(module, "quantize_", refuse)
    monkeypatch.setattr(module, "FLOAT_SEEDS", 1)
    cells = run_comparison(small(methods=("rtn",)), tmp_path)
    assert cells[1]["refused"] == "this width has no Hadamard matrix"
    assert summarize(cells)[1]["refused"] == "this width has no Hadamard matrix"


def test_the_summary_is_over_the_seeds():
    cell = {"model": "m", "stress": 0.0, "scheme": "W6A6", "method": "rtn", "top1_agreement": 0.9,
            "fd_interval": [1.0, 3.0], "weight_bytes": 10, "integer": True,
            "seconds_per_image": 0.5}  # fmt: skip
    first = cell | {"seed": 0, "kl": 0.1, "fd": 2.0, "sqnr_db": 10.0}
    second = cell | {"seed": 1, "kl": 0.3, "fd": 4.0, "sqnr_db": 20.0}
    (row,) = summarize([first, second])
    assert row["closeness"] == pytest.approx(0.2) and row["closeness_range"] == [0.1, 0.3]
    assert (row["fd"], row["sqnr_db"], row["seeds"]) == (3.0, 15.0, 2)
    assert (row["weight_bytes"], row["mean_bits"], row["target_bits"]) == (10, None, None)
    mixed = [first | {"target_bits": 5.0, "mean_bits": 4.5, "weight_bytes": 9},
             second | {"target_bits": 5.0, "mean_bits": 5.0, "weight_bytes": 11}]  # fmt: skip
    (row,) = summarize(mixed)  # another seed may choose other schemes
    assert (row["weight_bytes"], row["mean_bits"], row["target_bits"]) == (10, 4.75, 5.0)
    (continuous,) = summarize([first | {"kl": None, "relative_error": 0.01}])
    assert (continuous["figure"], continuous["closeness"]) == ("relative_error", 0.01)


def test_methods_with_additions():
    method = parse_method("rtn+stwq")
    assert method.name == "rtn" and method.granularity == "auto"
    assert parse_method("smoothquant+stwq+gptq").rounding == "gptq"
    assert parse_method("ptq4arvg+descent").rounding == "descent"
    assert parse_method("rtn+rot").rotation == "measured"
    assert parse_method("ptq4arvg+rotall").rotation == "all"
    assert parse_method("ptq4arvg+norot").rotation == "none"
    with pytest.raises(ValueError, match=r"'stwk' is no addition; wanted stwq.*Closest: 'stwq'"):
        parse_method("rtn+stwk")
    with pytest.raises(ValueError, match="unknown method 'rtm'"):
        parse_method("rtm+stwq")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"models": ("var-tinny",)}, "'var-tinny' is not bundled.*Closest: 'var-tiny'"),
        ({"methods": ("rtm",)}, "unknown method 'rtm'"),
        ({"schemes": ("W6A7",)}, "'W6A7'"),
        ({"schemes": ("W6A6", "3")}, "target_bits is 3; wanted 4 to 8"),
        ({"schemes": ("5", "5.0 bits")}, "5 bits is there twice"),
        ({"seeds": 0}, "seeds 0, images 2; wanted at least one"),
        ({"images": 1}, "seeds 1, images 1; wanted"),
        ({"stresses": (0.0, 0.5)}, "severity is 0.5; wanted at least 1"),
        ({"stresses": (float("nan"),)}, "severity is nan"),
    ],
    ids=["model", "method", "scheme", "budget", "twice", "seeds", "images", "stress", "nan"],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(changes, match):
    with pytest.raises(ValueError, match=match):
        small(**changes)


def test_a_folder_without_a_comparison(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no comparison\.json in"):
        read_cells(tmp_path)


def test_the_command_goes_on_and_writes_its_tables(measured, capsys, monkeypatch):
    monkeypatch.setattr(module, "FLOAT_SEEDS", 2)
    out, _ = measured
    argv = ["compare", "var-tiny", "--out", str(out), "--methods", "rtn,ptq4arvg", "--schemes",
            "W6A6", "--seeds", "1", "--samples", "4", "--keep", "4", "--images", "2", "--stress",
            "30"]  # fmt: skip
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "look   of the methods that run in integers ptq4arvg is first on 1 of 1 at W6A6" in text
    assert "| **" in (out / "summary.md").read_text()
    assert r"\begin{tabular}" in (out / "summary.tex").read_text()
    assert (out / "summary.csv").read_text().count("\n") == 4
    page = (out / "report.html").read_text()
    assert "ptq4arvg at W6A6:" in page
    assert re.findall('class="missing">([^<]*)', page) == [
        "Rows were not chosen by distance: select is dgc, 4 of 4 rows kept."
    ]
    assert json.loads((out / "comparison.json").read_text())["settings"]["keep"] == 4


def test_a_budget_is_measured_beside_the_schemes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "FLOAT_SEEDS", 1)
    argv = ["compare", "par-tiny", "--out", str(tmp_path), "--seeds", "1", "--samples", "4",
            "--keep", "4", "--images", "2", "--stress", "0", "-q"]  # fmt: skip
    assert main([*argv, "--methods", "rtn", "--schemes", "5.5"]) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*")}
    names = sorted(path.name for path in tmp_path.glob("*/*5.5*"))
    assert names == ["par-tiny_0_rtn_5.5-bits_0.json", "par-tiny_0_rtn_5.5-bits_0.png"]
    capsys.readouterr()
    assert main([*argv, "--methods", "rtn,smoothquant", "--schemes", "W6A6,5.50"]) == 0
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    mixed = [cell for cell in read_cells(tmp_path) if cell["scheme"] == "5.5 bits"]
    assert sorted(cell["method"] for cell in mixed) == ["rtn", "smoothquant"]
    model = load_model("par-tiny")
    weights = {s.name: model.transformer.get_submodule(s.name).weight for s in model.linears()}
    for cell in mixed:
        bits = {name: int(scheme[1]) for name, scheme in cell["schemes"].items()}
        assert len(set(bits.values())) > 1 and cell["target_bits"] == 5.5
        packed = sum(bits[name] * weight.numel() for name, weight in weights.items())
        assert cell["mean_bits"] == packed / sum(w.numel() for w in weights.values()) <= 5.5
        assert packed / 8 < cell["weight_bytes"] < 1.05 * packed / 8
    out, title = capsys.readouterr().out, "5.5 bits (reached 5."
    assert title in out
    for name in ("summary.md", "summary.tex", "report.html"):
        assert title in (tmp_path / name).read_text()
    rows = [*csv.DictReader((tmp_path / "summary.csv").open(newline=""))]
    bits = {(r["method"], r["scheme"]): r["mean_bits"] for r in rows}
    assert bits["float", "float"] == "" and bits["rtn", "W6A6"] == "6.0"
    assert bits["rtn", "5.5 bits"] == str(mixed[0]["mean_bits"])


def test_processes_measure_the_same_cells(tmp_path):
    comparison = small(models=("par-tiny",), methods=("rtn",), schemes=("5.5",),
                       stresses=(0.0, 30.0))  # fmt: skip
    shown = []
    cells = run_comparison(comparison, tmp_path, lambda *a: shown.append(a), jobs=2)
    assert [c["stress"] for c in cells if c["scheme"] == "5.5 bits"] == [0.0, 30.0]
    assert shown[0][:2] == ("cells", 0) and shown[-1] == ("cells", len(cells), len(cells))
    assert not list(tmp_path.glob("inspection/*"))  # only our own method is looked into


def test_an_error_in_a_process_is_told(tmp_path, monkeypatch):
    comparison = small(methods=("rtn",), stresses=(0.0, 30.0))
    (tmp_path / "cells").write_text("a file where the folder of the cells should be")
    with pytest.raises(OSError, match="cells"):
        run_comparison(comparison, tmp_path, jobs=2)


def test_images_are_drawn_with_the_first_calibration_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FLOAT_SEEDS", 1)
    cells = run_comparison(small(methods=("rtn",), seeds=2), tmp_path)
    assert ["fd" in cell for cell in cells] == [True, True, False]
    rows = {row["method"]: row for row in summarize(cells)}
    assert rows["rtn"]["seeds"] == 2
    assert rows["rtn"]["fd_range"] == [cells[1]["fd"]] * 2


@pytest.mark.parametrize(
    ("options", "text"),
    [({"samples": 7}, "samples 7, keep"), ({"select": "foo"}, "unknown select 'foo'")],
)
def test_rows_that_cannot_be_chosen_are_found_first(options, text):
    with pytest.raises(ValueError, match=text):
        Comparison(models=("var-tiny",), methods=("rtn",), **options)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"number"', "\xff"])
def test_damaged_files_are_named(text, tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "comparison.json").write_text(text, "latin1")
    with pytest.raises(ValueError, match=r"comparison\.json is damaged; delete it"):
        read_settings(tmp_path)
    (tmp_path / "cells" / "a.json").write_text(text, "latin1")
    with pytest.raises(ValueError, match=r"a\.json is damaged; delete it"):
        read_cells(tmp_path)


def test_a_folder_without_settings(tmp_path):
    assert read_settings(tmp_path) is None
