"""bench/generate.py on the bundled model, one image and one repeat: columns, ratios, errors."""

import csv

import generate
import pytest
import variants


@pytest.mark.slow
def test_the_bundled_model(tmp_path, capsys):
    out, kept = tmp_path / "g.csv", tmp_path / "checkpoints"
    arguments = ["--model", "var-tiny", "--schemes", "W4A8", "--floats", "float32", "--repeats",
                 "1", "--threads", "1", "--checkpoints", str(kept), "--out", str(out)]  # fmt: skip
    assert generate.main(arguments) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(generate.COLUMNS)
    assert [row["variant"] for row in rows] == ["float32", "W4A8"]
    for row in rows:
        first, tokens, whole = (
            float(row[f"seconds_{c}"]) for c in ("first_scale", "tokens", "image")
        )
        assert 0 < first < tokens < whole
        assert float(row["peak_mib"]) > float(row["import_mib"]) > 0
        assert float(row["x_float32"]) > 0 and not row["x_bfloat16"]
    assert float(rows[0]["x_float32"]) == 1 and float(rows[0]["memory_float32"]) == 1
    assert (kept / "var-tiny-W4A8-bfloat16" / "config.json").is_file()
    captured = capsys.readouterr()
    assert "W4A8" in captured.out and "generate" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "var-16"], "Closest: 'var-d16'"),
        (["--schemes", "W8A6"], "Closest: 'W8A8'"),
        (["--floats", "float16"], "unknown 'float16'"),
        (["--images", "0"], "above 0"),
        (["--schemes", "", "--floats", ""], "nothing to measure"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert generate.main(["--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_worker_that_ends_is_named():
    with pytest.raises(variants.VariantError, match="W8A8: its process ended"):
        variants.Variant("var-tiny", "W8A8", variants.Path("no-such-folder"), 1, 1, "cpu")


class Fake:
    """A variant that takes as long as its name says, and is interrupted in the third round."""

    calls = 0

    def __init__(self, _model, name, *_rest):
        self.scale = {"float32": 4.0, "bfloat16": 2.0, "W8A8": 1.0}[name]
        self.loaded = {"seconds": 1.0, "import_mib": 100.0}

    def run(self):
        Fake.calls += 1
        if Fake.calls > 3 + 7:
            raise KeyboardInterrupt
        s = self.scale
        return {"seconds": s, "first": 0.1 * s, "tokens": 0.9 * s, "decode": 0.1 * s, "cpu": s,
                "waited": 0.0, "peak_mib": 100 * s}  # fmt: skip

    def close(self):
        pass


def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "Variant", Fake)
    monkeypatch.setattr(generate, "prepare", lambda *_: {})
    monkeypatch.setattr(Fake, "calls", 0)
    out = tmp_path / "g.csv"
    assert (
        generate.main(["--schemes", "W8A8", "--images", "2", "--quiet", "--out", str(out)]) == 130
    )
    with out.open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert [row["repeats"] for row in rows.values()] == ["3", "2", "2"]
    assert float(rows["W8A8"]["x_float32"]) == 4 and float(rows["W8A8"]["x_bfloat16"]) == 2
    assert float(rows["W8A8"]["memory_float32"]) == 0.25
    assert float(rows["W8A8"]["seconds_image"]) == 0.5
