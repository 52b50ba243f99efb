"""The ablation: resuming keeps what the same settings measured, and nothing else."""

import csv

import pytest

from bench import ablation

STAMP = {"commit": "abc", "date": "2026-01-02", "keep": 4}


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*ablation.COLUMNS, *STAMP])
        writer.writeheader()
        writer.writerows(rows)


def row(stress, seed, variant, kl, **stamp):
    return {"stress": stress, "seed": seed, "variant": variant, "kl": kl, **STAMP, **stamp}


def test_rows_of_the_same_settings_are_kept(tmp_path):
    path = tmp_path / "a.csv"
    assert ablation.read_done(path, STAMP) == []
    same, other = row(0.0, 1, "W6A6", 0.5), row(30.0, 0, "W6A6", 0.7, date="other")
    write(path, [same, {**same, "commit": "def"}, {**same, "keep": 8}, other])
    kept = ablation.read_done(path, STAMP)
    assert [(r["stress"], r["variant"]) for r in kept] == [("0.0", "W6A6"), ("30.0", "W6A6")]


def test_what_is_done_is_not_measured_again():
    done = {(str(s), "", "float") for s in ablation.STRESS}
    done |= {(str(s), "0", variant) for s in ablation.STRESS for variant in ablation.VARIANTS}
    assert list(ablation.measure(1, 2, 4, 2, done)) == []


def test_the_summary_has_means_over_seeds():
    rows = [row(0.0, 0, "W6A6", 0.5), row("0.0", 1, "W6A6", "0.7"), row(30.0, 0, "W6A6", 1.0)]
    text = ablation.summary(rows)
    assert "0.60000" in text and "1.00000" in text


def test_every_variant_is_accepted_by_the_library():
    from ptq4arvg.methods import get_method
    from ptq4arvg.numerics import SCHEMES

    for scheme, _select, _draws, options in ablation.VARIANTS.values():
        assert scheme in SCHEMES
        method = options.get("method", "ptq4arvg")
        get_method(method, **{k: v for k, v in options.items()
                              if k not in ("pack", "method", "compat")})  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds 0; wanted 1 or more"),
        (["--images", "1"], "--images 1; wanted 2 or more"),
        (["--keep", "0"], "keep 0; wanted"),
    ],
)
def test_bad_arguments_leave_the_record(tmp_path, capsys, arguments, message):
    path = tmp_path / "a.csv"
    path.write_text("record")
    assert ablation.main([*arguments, "--out", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert path.read_text() == "record"


def test_a_folder_is_no_record(tmp_path, capsys):
    assert ablation.main(["--out", str(tmp_path)]) == 2
    assert "is a folder; wanted the name of a file" in capsys.readouterr().err
