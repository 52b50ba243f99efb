"""The file of the tile table: what the script reads and writes is what the compiler reads."""

import pytest
from tile_table import ANY, MEASURED, PATH, Row, parse, render, with_measured

needs_source = pytest.mark.skipif(not PATH.exists(), reason="needs the source folder")
WIDE = ((1, ANY), (1, ANY), (1, ANY), (4, 8), (1, 4))


def row(sm, kernel="a", reason="because"):
    return Row((sm, sm), *WIDE, kernel, reason)


@needs_source
def test_the_file_is_as_the_script_writes_it():
    head, rows = parse(PATH.read_text())
    assert render(head, rows) == PATH.read_text()
    assert rows[0].kernel == "decode" and rows[-1].kernel == "tiled.64x64x64"
    assert rows[0].m == (1, 32) and rows[-1].m == (1, ANY)


def test_what_is_written_is_read_again():
    rows = [row(80), Row((90, 90), (33, 64), (1, 7), (8, ANY), (8, 8), (2, 4), "b.c", "1.2x, 3 %")]
    text = render("// head\n", rows)
    assert parse(text) == ("// head\n", rows)
    assert "any" in text and str(ANY) not in text


@pytest.mark.parametrize("line", ["ROW(1, 2)", 'ROW(x, "a", "b")', "rubbish"])
def test_a_bad_line_is_named(line):
    with pytest.raises(ValueError, match=r"line 2: .* is no row; wanted ROW"):
        parse(f"// head\n{line}\n")


def test_measured_rows_replace_those_of_their_architecture_only():
    rest = [row(90), row(80, reason=f"{MEASURED}fast"), row(80)]
    old = row(90, "old", f"{MEASURED}slow")
    new = row(90, "new", f"{MEASURED}fast")
    assert with_measured([old, *rest], [new], 90) == [new, *rest]
