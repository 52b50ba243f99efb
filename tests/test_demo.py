"""The demo, shortened: its report's keys, its rows, its files."""

import json
import re

import pytest
from PIL import Image

from ptq4arvg import demo as module
from ptq4arvg.cli import main
from ptq4arvg.demo import closeness, demo_runs, headline, run_demo
from ptq4arvg.pipeline import quantize_
from ptq4arvg.report import ROW_KEYS, markdown_table


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 4)
    monkeypatch.setattr(module, "KEEP", 4)
    monkeypatch.setattr(module, "COMPARED", 2)


def test_report_has_its_schema_and_is_the_same_twice(short):
    seen = []
    runs = (("ptq4arvg", "W6A6"), ("rtn", "W6A6"))
    first, second = (
        run_demo(seed=3, images=2, stressed=True, runs=runs, on_row=seen.append) for _ in range(2)
    )
    report = first.report
    assert list(report) == ["model", "seed", "torch", "isa", "rows"]
    names = [(row["method"], row["scheme"], row["stress"]) for row in report["rows"]]
    assert names == [
        (method, scheme, stress)
        for stress in (0.0, 30.0)
        for method, scheme in (("float", "float"), *runs)
    ]
    assert len(seen) == 12
    for row, again in zip(report["rows"], second.report["rows"], strict=True):
        assert set(ROW_KEYS) <= set(row)
        if row["method"] == "float":
            assert (row["sqnr_db"], row["kl"], row["top1_agreement"]) == (None, 0, 1)
        else:
            assert row["sqnr_db"] > row["worst_sqnr_db"]
            assert row["weight_bytes"] < 0.4 * report["rows"][0]["weight_bytes"]
        assert row["fd_interval"][0] <= row["fd"] <= row["fd_interval"][1]
        timing = {"seconds_per_image": 0}
        assert row | timing == again | timing
    assert [len(block.rows) for block in first.blocks] == [3, 3]
    assert "stressed" in first.blocks[1].title
    assert "smiley face" in first.columns
    assert headline(report).startswith("next-token KL at W6A6")


def test_round_to_nearest_runs_at_one_of_the_schemes():
    ours = [("ptq4arvg", scheme) for scheme in ("W8A8", "W6A6", "W4A8")]
    assert demo_runs() == [*ours, ("rtn", "W6A6")]
    assert demo_runs(["5.5", "W8A8"]) == [
        ("ptq4arvg", "5.5 bits"), ("ptq4arvg", "W8A8"), ("rtn", "5.5 bits"),
    ]  # fmt: skip


def test_a_budget_beside_the_schemes(short, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "quantize_", lambda model, method, **rest: quantize_(
        model, method="rtn", **rest))  # fmt: skip  # the other takes half a minute for a budget
    argv = ["demo", "--model", "par-tiny", "--out", str(tmp_path), "--images", "2", "--no-stress"]
    assert main([*argv, "--schemes", "5.5"]) == 0
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [(row["method"], row["scheme"]) for row in rows] == [
        ("float", "float"), ("ptq4arvg", "5.5 bits"), ("rtn", "5.5 bits"),
    ]  # fmt: skip
    assert rows[0]["mean_bits"] is None and all(5.3 < r["mean_bits"] <= 5.5 for r in rows[1:])
    assert 5.3 / 16 < rows[1]["weight_bytes"] / rows[0]["weight_bytes"] < 5.7 / 16
    out = capsys.readouterr().out
    assert re.search(r" bits +SQNR dB ", out) and "KL at 5.5 bits, by the method" in out
    assert "ptq4arvg quantize par-tiny --target-bits 5.5 --out out" in out
    assert main([*argv, "--schemes", "W6A6,9"]) == 2
    assert "target_bits is 9; wanted 4 to 8" in capsys.readouterr().err


def test_the_command_writes_its_files(short, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--images", "2", "--no-stress"]) == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    schemes = [row["scheme"] for row in report["rows"]]
    assert schemes == ["float", "W8A8", "W6A6", "W4A8", "W6A6"]
    assert Image.open(tmp_path / "demo" / "grid.png").width > 100
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[-3:]] == ["wrote", "look", "next"]
    assert not any("FID" in line or " bits " in line for line in out)
    assert out[-1].endswith("ptq4arvg quantize var-tiny --scheme W6A6 --out out")


def test_continuous_tokens_are_compared_by_the_noise_that_is_predicted(short):
    report = run_demo("mar-tiny", images=2, stressed=False, runs=[("ptq4arvg", "W6A6")]).report
    for row in report["rows"]:
        assert row["kl"] is None and row["top1_agreement"] is None
        assert closeness(row) == (
            "relative error of the predicted noise", "error", row["relative_error"],
        )  # fmt: skip
    float_row, quantized = report["rows"]
    assert float_row["relative_error"] == 0 < quantized["relative_error"] < 0.5
    assert "| error |" in markdown_table(report["rows"])


def test_a_model_that_is_not_bundled_is_refused():
    with pytest.raises(ValueError, match=r"'rar-b' is not bundled; wanted one of .*rar-tiny"):
        run_demo("rar-b")


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="wanted at least 2"):
        run_demo(images=1)
