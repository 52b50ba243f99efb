"""`ptq4arvg quantize --decoder`: what it prints and writes, and what it refuses before any work."""

import json
import re

import pytest

from ptq4arvg.cli import main

FAMILIES = {"var-tiny": 18, "rar-tiny": 18, "par-tiny": 18, "mar-tiny": 18}


def run(*arguments):
    assert main([str(a) for a in arguments]) == 0


def refused(capsys, *arguments):
    """The message of a run that ends with an error."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.safetensors"
    run("calibrate", "var-tiny", "--out", path, "--samples", 4, "--keep", 4, "--seed", 1, "-q")
    return path


def quantize(rows, folder, *more):
    run("quantize", "var-tiny", "--method", "rtn", "--calibration", rows, "--out", folder, *more)


def test_a_checkpoint_with_a_decoder_in_integers(rows, tmp_path, capsys):
    folder = tmp_path / "q"
    quantize(rows, folder, "--decoder", "W8A8")
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["wrote", "look", "next"]
    found = re.search(
        r"SQNR .*, decoder W8A8: images within ([0-9.]+) dB PSNR of the float decoder's$", lines[-2]
    )
    assert "decoder" in captured.err  # progress in plain lines
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["version"] == 4 and config["recipe"]["decoder"] == "W8A8"
    report = json.loads((folder / "report.json").read_text())["decoder"]
    assert found[1] == f"{report['psnr_db']:.1f}" and report["psnr_db"] > 45
    assert report["convolutions"] == FAMILIES["var-tiny"]
    run("verify", folder)
    out = capsys.readouterr().out
    assert "the same hash" in out and "integer layers equal their simulation" in out
    run("generate", folder, "--classes", "3", "--out", tmp_path / "images", "-q")
    assert (tmp_path / "images" / "000_class3.png").is_file()


def test_without_it_nothing_is_said_of_a_decoder(rows, tmp_path, capsys):
    quantize(rows, tmp_path / "q")
    captured = capsys.readouterr()
    assert "decoder" not in captured.out + captured.err
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert config["quantization_config"]["version"] == 1 and "decoder" not in config["recipe"]


@pytest.mark.parametrize(("scheme", "share"), [("W8A8", 8), ("w6a6", 6), ("W4A8", 4)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_dry_run_ends_with_a_line_about_the_decoder(
    name, scheme, share, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run("quantize", name, "--dry-run", "--decoder", scheme, "-q")
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(
        rf"{FAMILIES[name]} convolutions of the tokenizer's decoder to {scheme.upper()}: "
        r"([0-9.]+) MB -> ([0-9.]+) MB",
        line,
    )
    half, after = float(found[1]), float(found[2])
    assert half > 1 and after == pytest.approx(half * share / 16, abs=0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_without_it_and_with_mean_bits(capsys):
    run("quantize", "var-tiny", "--dry-run", "-q")
    assert "decoder" not in capsys.readouterr().out
    run("quantize", "var-tiny", "--dry-run", "--target-bits", 5.5, "--decoder", "W6A8", "-q")
    out = capsys.readouterr().out
    assert "at most 5.5 bits" in out and "decoder to W6A8: 3.19 MB -> 1.20 MB\n" in out


@pytest.mark.parametrize("end", [["--dry-run"], ["--out", "q"]])
def test_an_unknown_scheme_is_found_out_before_the_work(end, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, "quantize", "var-tiny", "--decoder", "W8A9", "-q", *end)
    assert "unknown scheme 'W8A9'; wanted one of W8A8, W6A8, W6A6, W4A8. Closest: " in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["svdquant", "quarot"])
def test_a_method_that_simulates_is_refused(rows, method, capsys, tmp_path):
    error = refused(
        capsys, "quantize", "var-tiny", "--method", method, "--calibration", rows, "--decoder",
        "W8A8", "--out", tmp_path / "q", "-q",
    )  # fmt: skip
    assert f"method '{method}' has no integer path" in error
    assert not (tmp_path / "q").exists()
