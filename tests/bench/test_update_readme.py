"""The script that puts the demo's table into the README."""

import importlib.util
from pathlib import Path

import pytest

from ptq4arvg.models import BUNDLED

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "bench" / "update_readme.py"
    spec = importlib.util.spec_from_file_location("update_readme", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BEGIN, END = "<!-- demo-table -->", "<!-- /demo-table -->"


def test_the_table_goes_between_the_markers(script):
    text = f"a\n{BEGIN}\nold\n{END}\nb\n"
    once = script.replace_table(text, "demo", "| new |\n")
    assert once == f"a\n{BEGIN}\n| new |\n{END}\nb\n"
    assert script.replace_table(once, "demo", "| new |\n") == once


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN])
def test_missing_markers_are_an_error(script, text):
    with pytest.raises(ValueError, match="wants one"):
        script.replace_table(text, "demo", "")


def test_the_readme_has_its_markers(script):
    others = [f"demo-{name}" for name in BUNDLED if name != "var-tiny"]
    for name in ("demo", *script.TABLES, *others):
        script.replace_table((ROOT / "README.md").read_text(), name, "")


def test_the_ablation_table_has_means_and_ranges(script):
    rows = [
        {"stress": "0.0", "seed": "", "variant": "float", "kl": ""},
        {"stress": "0.0", "seed": "0", "variant": "W6A6", "kl": "0.1"},
        {"stress": "0.0", "seed": "1", "variant": "W6A6", "kl": "0.3"},
        {"stress": "30.0", "seed": "0", "variant": "W6A6", "kl": "0.5"},
    ]
    lines = script.ablation_table(rows).splitlines()
    assert lines[0] == "| KL, mean of 2 seeds (range) | plain | stressed 30 |"
    assert lines[2:] == ["| W6A6 | 0.200 (0.100 to 0.300) | 0.500 (0.500 to 0.500) |"]


def test_the_mixed_table_has_means_and_megabytes(script):
    def row(model, seed, kl, error):
        return {"model": model, "seed": seed, "variant": "5 bits", "kl": kl,
                "relative_error": error, "weight_bytes": "2000000"}  # fmt: skip

    rows = [row("a", "0", "0.1", "9"), row("a", "1", "0.3", "9"), row("b", "0", "", "0.5")]
    lines = script.mixed_table(rows).splitlines()
    assert lines[0] == "| mean of 2 seeds (MB) | `a` | `b` |"
    assert lines[2:] == ["| 5 bits | 0.20 (2.00) | 0.50 (2.00) |"]


def test_the_comparison_has_a_table_per_scheme_with_bytes(script):
    def row(method, scheme="W6A6", closeness="0.25", integer="True", size="100", refused=""):
        return {"model": "m", "stress": "0.0", "scheme": scheme, "method": method,
                "closeness": closeness, "integer": integer, "weight_bytes": size,
                "refused": refused}  # fmt: skip

    rows = [
        row("float", "float", "0.0", ""), row("rtn"), row("svdquant", closeness="0.125",
        integer="False", size="150"), row("quarot", closeness="", refused="no factor"),
        row("rtn", "W8A8"),
    ]  # fmt: skip
    six, eight = script.compare_table(rows).split("\n\n")
    assert six.splitlines() == [
        "| W6A6 | m | bytes |",
        "|---|---:|---:|",
        "| rtn | **0.25** | 1.00 |",
        "| svdquant | **0.12*** | 1.50 |",
        "| quarot | - | 0.00 |",
    ]
    assert eight.splitlines()[0] == "| W8A8 | m | bytes |"
    mixed = row("rtn", "5.5 bits") | {"target_bits": "5.5", "mean_bits": "5.4321"}
    head = script.compare_table([mixed]).splitlines()[0]
    assert head == "| 5.5 bits (reached 5.43) | m | bytes |"


def test_the_decoders_tables(script):
    def row(model, candidate, **more):
        empty = {"kernel": "", "psnr_db": "", "x_float32": "", "x_bfloat16": ""}
        own = {"model": model, "images": "8", "candidate": candidate, "median_ms": "80"}
        return empty | own | more

    rows = [
        row("a", "float32"),
        row("a", "W8A8", kernel="k", x_float32="4.04", x_bfloat16="1.96", psnr_db="50.04"),
        row("b", "W8A8", kernel="k", x_float32="3", x_bfloat16="2", psnr_db="46"),
    ]
    assert script.decoder_table(rows).splitlines() == [
        "| model | images | ms an image | times faster than float32 | times faster than bfloat16 |",
        "|---|---:|---:|---:|---:|",
        "| a | 8 | 10 | 4.0 | 2.0 |",
        "| b | 8 | 10 | 3.0 | 2.0 |",
    ]
    assert script.decoder_images_table(rows).splitlines() == [
        "| PSNR, dB | `a` | `b` |",
        "|---|---:|---:|",
        "| W8A8 | 50.0 | 46.0 |",
    ]


def test_the_table_of_whole_calls(script):
    row = {"variant": "W8A8", "seconds_tokens": "8.04", "seconds_decode": "4", "seconds_call": "12",
           "x_bfloat16": "1.996", "memory_bfloat16": "0.6"}  # fmt: skip
    assert script.generate_table([row]).splitlines()[2:] == [
        "| W8A8 | 8.0 | 4.0 | 12.0 | 2.00 | 0.60 |"
    ]


@pytest.fixture
def root(script, tmp_path, monkeypatch):
    """A folder with a README of its own, which the script then updates."""
    monkeypatch.setattr(script, "ROOT", tmp_path)
    text = "".join(f"<!-- {n}-table -->\n<!-- /{n}-table -->\n" for n in ("demo", "mixed"))
    (tmp_path / "README.md").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("kernels.csv", "op\ngemm\n", "no table of kernels.csv; wanted one of ablation, mixed, "),
        ("mixed.csv", "op\ngemm\n", "mixed.csv has no column 'model'; wanted a whole record"),
        ("mixed.csv", "model\n", "mixed.csv has no rows"),
        ("mixed.csv", None, "mixed.csv is no file; wanted the report.json of a demo, or a CSV"),
        ("report.json", "{}", "report.json is no report of a demo ('model')"),
        ("report.json", "[", "report.json is no report of a demo"),
        ("report.json", '{"model": "var-tiny", "rows": []}', "grid.png is missing"),
    ],
)
def test_files_that_nothing_is_made_of(script, root, capsys, name, text, message):
    before = (root / "README.md").read_text()
    if text is not None:
        (root / name).write_text(text)
    assert script.main([str(root / name)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (root / "README.md").read_text() == before


def test_a_report_and_its_picture(script, root):
    folder = root / "bench" / "results" / "demo"
    report = ROOT / "bench" / "results" / "demo" / "report.json"
    for path in (report, folder / "report.json"):  # then the copy itself
        assert script.main([str(path)]) == 0
        assert "|" in (root / "README.md").read_text()
        assert (folder / "report.json").read_text() == report.read_text()
        assert (folder / "grid.png").is_file()


def test_help(script, capsys):
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    assert "bench/update_readme.py demo/report.json" in capsys.readouterr().out
