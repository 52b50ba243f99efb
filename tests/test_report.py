"""The grid, the tables and the JSON file."""

import io
import json

import pytest
import torch
from PIL import Image

from ptq4arvg.report import (
    ROW_KEYS,
    Block,
    draw_grid,
    markdown_table,
    rich_table,
    save_png,
    write_report,
)


def row(**changes):
    values = {
        "method": "ptq4arvg", "scheme": "W6A6", "stress": 0.0, "sqnr_db": 30.25,
        "worst_sqnr_db": 18.0, "kl": 0.0123, "top1_agreement": 0.957,
        "relative_error": 0.002, "fd": 4.5,
        "weight_bytes": 5_300_000, "seconds_per_image": 0.0314,
    }  # fmt: skip
    return values | changes


def images(n=4, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_grid_shows_every_image_enlarged_without_smoothing():
    first, second = images(seed=1), images(seed=2)
    blocks = [Block("plain", [("float", "note", first), ("W6A6", "", second)])]
    grid = draw_grid(blocks, columns=["a bird", "b", "c", "d"], scale=3)
    pixels = torch.tensor(list(grid.convert("RGB").tobytes())).view(grid.height, grid.width, 3)
    for batch in (first, second):
        for image in batch:
            tile = (image * 255).round().permute(1, 2, 0).to(torch.uint8)
            tile = tile.repeat_interleave(3, 0).repeat_interleave(3, 1)
            found = pixels.to(torch.uint8).unfold(0, 24, 1).unfold(1, 24, 1)[..., ::23, ::23]
            corners = tile[::23, ::23].permute(2, 0, 1)
            assert (found == corners).flatten(2).all(2).any()


def test_grid_grows_by_rows_and_blocks():
    rows = [("float", "", images())]
    one = draw_grid([Block("plain", rows)])
    two = draw_grid([Block("plain", rows), Block("stressed", rows)])
    more = draw_grid([Block("plain", rows * 2)])
    assert one.width == two.width == more.width
    assert more.height == one.height + 8 * 3 + 6
    assert two.height > more.height
    assert draw_grid([Block("plain", rows)], footnote="word " * 200).height > one.height


def test_grid_wants_one_shape_and_a_name_per_column():
    with pytest.raises(ValueError, match="wanted one shape"):
        draw_grid([Block("a", [("x", "", images(3)), ("y", "", images(4))])])
    with pytest.raises(ValueError, match="2 column names for 4 images"):
        draw_grid([Block("a", [("x", "", images())])], columns=["a", "b"])


def test_png_is_written_and_the_same_twice(tmp_path):
    grid = draw_grid([Block("plain", [("float", "", images())])])
    path = save_png(grid, tmp_path / "grid.png")
    assert Image.open(save_png(grid, tmp_path / "t.png", by="me")).info["by"] == "me"
    again = save_png(grid, tmp_path / "again.png")
    assert path.read_bytes() == again.read_bytes()
    assert Image.open(path).size == grid.size


ROWS = [
    row(method="float", scheme="float", sqnr_db=None, worst_sqnr_db=None, kl=None),
    row(),
    row(method="rtn", kl=0.0004, stress=30.0, fd_interval=[4.0, 5.0]),
]


def test_markdown_table():
    lines = markdown_table(ROWS).splitlines()
    assert lines[0].startswith("| model | scheme | method | SQNR dB | worst |")
    assert lines[2] == "| plain | float | float | - | - | - | 95.7% | 4.50 | 5.30 | 31 |"
    assert lines[4] == (
        "| stressed 30 | W6A6 | round to nearest | 30.2 | 18.0 | 0.00040 | 95.7% | "
        "4.50 (4.00 to 5.00) | 5.30 | 31 |"
    )


def test_continuous_tokens_have_an_error_in_place_of_next_token_figures():
    lines = markdown_table([row(kl=None, top1_agreement=None)]).splitlines()
    assert "| worst | error | Frechet distance |" in lines[0] and "KL" not in lines[0]
    assert "| 18.0 | 0.0020 | 4.50 |" in lines[2]
    unknown = row(kl=None, top1_agreement=None, relative_error=None)
    assert "| 18.0 | - | 4.50 |" in markdown_table([unknown]).splitlines()[2]


def test_terminal_table_has_the_same_cells():
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=140).print(rich_table(ROWS, "title"))
    text = out.getvalue()
    assert "stressed 30" in text
    assert "4.50 (4.00 to 5.00)" in text
    assert "FID" not in text


def test_report_keeps_its_keys(tmp_path):
    path = write_report(tmp_path / "report.json", {"model": "var-tiny", "seed": 0, "rows": ROWS})
    data = json.loads(path.read_text())
    assert list(data) == ["model", "seed", "rows"]
    assert set(data["rows"][0]) == set(ROW_KEYS)
    assert data["rows"][0]["kl"] is None


def test_a_row_that_lacks_a_figure_is_an_error(tmp_path):
    bad = row()
    del bad["kl"]
    with pytest.raises(ValueError, match="lacks kl"):
        write_report(tmp_path / "report.json", {"rows": [bad]})
    with pytest.raises(ValueError, match="lacks kl"):
        markdown_table([bad])
