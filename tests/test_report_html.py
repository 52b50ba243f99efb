"""The page of a comparison: whole, escaped, the same bytes twice, honest about what is missing."""

import base64
import io
import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import pytest
from PIL import Image

from ptq4arvg.cells import cell_name
from ptq4arvg.cli import app, main
from ptq4arvg.goals import parse_goals
from ptq4arvg.report_html import make_page, write_page
from ptq4arvg.report_html.images import BUDGET
from ptq4arvg.report_html.layers import _rank_correlation
from ptq4arvg.report_html.markup import Markup, tag
from ptq4arvg.report_html.parts import method_mark
from ptq4arvg.report_html.recipe import command
from ptq4arvg.report_html.record import read_record
from ptq4arvg.report_html.svg import Axis, plain_number

SECTIONS = ["results", "bytes", "images", "layers", "channels", "positions", "gps", "dgc", "recipe"]
LAYERS = [f"blocks.{i}.fc" for i in range(12)]


def png(seed, width=64, height=8, large=False):
    """Bytes of a PNG of ``width`` x ``height``; large: 0.4 MB of them."""
    rows = b"".join(
        b"\0" + bytes((seed * 31 + y * 7 + x * 3) % 256 for x in range(3 * width))
        for y in range(height)
    )

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))  # fmt: skip

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    padding = chunk(b"tEXt", b"c\0" + b"x" * 400_000) if large else b""
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + padding + body


def transform(i):
    return {"smooth": 0.5, "rotation": 64 if i in (1, 2) else 0, "rotated_after": i == 2,
            "gain_predicted": 2.0 + i, "error_before": 0.01, "error_after": 0.009 - 1e-4 * i,
            "error_whole_step": 0.008 + 3e-3 * i, "gps_share": 0.5,
            "expected_before": 0.02, "expected_whole_step": 0.019 + 6e-3 * i}  # fmt: skip


def make_folder(out, models=("m",), methods=("rtn", "ptq4arvg"), schemes=("W6A6", "W8A8"),
                large=False):  # fmt: skip
    comparison = {
        "models": list(models), "methods": list(methods), "schemes": list(schemes),
        "stresses": [0.0, 30.0], "seeds": 1, "samples": 8, "keep": 4, "images": 2, "compared": 2,
        "select": "dgc", "settings": {"version": "0.1.0", "torch": "2.13.0"}, "inspected": "W6A6",
        "isa": "avx2", "threads": 2,
    }  # fmt: skip
    for folder in ("cells", "images", "inspection"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / "comparison.json").write_text(json.dumps(comparison))
    number = 0
    for model in models:
        for stress in (0.0, 30.0):
            names = [("float", "float"), *((m, s) for s in schemes for m in methods)]
            for method, scheme in names:
                cell = {"model": model, "stress": stress, "method": method, "scheme": scheme,
                        "seed": 0, "kl": 0.01 * number, "relative_error": 0.1, "fd": 9.0,
                        "fd_interval": [8.0, 10.0], "weight_bytes": 10**6 + number,
                        "seconds_per_image": 0.1, "number": number}  # fmt: skip
                if method != "float":
                    cell |= {"integer": True, "sqnr_db": 25.0}
                    cell["layers"] = {name: 20.0 + i for i, name in enumerate(LAYERS)}
                    cell["transforms"] = {name: transform(i) for i, name in enumerate(LAYERS)}
                    cell["mean_bits"] = 6.0
                if scheme.endswith("bits"):
                    cell |= {"target_bits": 5.5, "mean_bits": 5.4 + 0.01 * number}
                    cell["schemes"] = {name: f"W{4 + i % 2 * 2}A8" for i, name in enumerate(LAYERS)}
                name = re.sub("/", "", cell_name(cell))
                (out / "cells" / f"{name}.json").write_text(json.dumps(cell))
                (out / "images" / f"{name}.png").write_bytes(png(number, large=large))
                number += 1
            inspection = {
                "outputs": dict.fromkeys(LAYERS, 10**4),
                "channels": {"layer": LAYERS[1], "spreads": {LAYERS[1]: 0.5},
                             "activation_before": [8.0, 2.0, 1.0], "weight_before": [1.0, 1.0, 0.0],
                             "activation_after": [2.0, 2.0, 1.0], "weight_after": [3.0, 1.0, 0.0]},
                "positions": {"layer": LAYERS[2], "sink": [0], "blend": 0.5, "steps": [0, 1, 1],
                              "group": [0, 1, 2], "lo": [-3.0, -1.0, -1.0], "hi": [3.0, 1.0, 2.0],
                              "scale": [0.1, 0.05, 0.05], "grid_lo": [-3.0, -1.0, -1.0],
                              "grid_hi": [3.0, 1.0, 1.5]},
                "selection": {"distance": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
                              "kept": [False] * 4 + [True] * 4},
            }  # fmt: skip
            path = out / "inspection" / f"{model.replace('/', '')}_{stress:g}_W6A6.json"
            path.write_text(json.dumps(inspection))
    return out


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "compared")


class Checker(HTMLParser):
    """Fails where elements do not close in order; collects ids, sources, links and text."""

    VOID = ("br", "img", "input", "meta")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.images, self.links, self.tags, self.words = [], [], {}, [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, name, attributes):
        found = dict(attributes)
        self.tags.append(name)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[key] for key in ("href", "src") if key in found]
        if name == "img" and "id" in found:
            self.images[found["id"]] = found["src"]
        if name not in self.VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def test_the_page_is_whole_and_needs_nothing_else(folder):
    path = write_page(folder)
    text = path.read_text()
    page = Checker(text)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    bare = re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    assert not re.search(r"//|@import|url\(|fetch\(|<link|srcset", bare)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert "default-src &#x27;none&#x27;" in text
    assert len(text) < 200_000
    assert "missing" not in text.split("</style>")[1]


def test_the_same_folder_gives_the_same_bytes(folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert write_page(folder).read_bytes() == write_page(copy).read_bytes()
    assert write_page(folder).read_bytes() == write_page(copy).read_bytes()  # over an older one


def test_pictures_are_those_of_the_folder_pixel_for_pixel(folder):
    page = Checker(make_page(folder))
    shown = set()
    for source in page.images.values():
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        shown.add(Image.open(io.BytesIO(data)).tobytes())
    kept = {Image.open(path).tobytes() for path in (folder / "images").glob("*.png")}
    assert shown == kept and len(page.images) == len(kept) == 10
    # The viewer takes its pictures from these by their ids.
    text = make_page(folder)
    for number in (0, 1):
        assert f'data-float="s{number}"' in text and f"s{number}" in page.images
    chosen = re.findall(r'<option value="(s[^"]+)"( selected)?>([^<]+)<', text)
    assert {identity for identity, _, _ in chosen} == set(page.images) - {"s0", "s1"}
    assert [t for _, selected, t in chosen if selected] == ["ptq4arvg at W6A6"] * 2


HOSTILE = '<script>alert("x")</script>\'"&'


def test_hostile_names_are_text(tmp_path):
    out = make_folder(tmp_path, models=(HOSTILE,), methods=("rtn", "ptq4arvg", HOSTILE))
    for path in (out / "inspection").iterdir():
        content = json.loads(path.read_text())
        content["channels"]["layer"] = HOSTILE
        content["channels"]["spreads"] = {HOSTILE: 1.0}
        path.write_text(json.dumps(content))
    for path in (out / "cells").glob("*W8A8*"):
        cell = json.loads(path.read_text())
        if cell["method"] == HOSTILE:
            path.write_text(json.dumps({**cell, "refused": HOSTILE}))
    text = make_page(out)
    page = Checker(text)
    assert page.tags.count("script") == 1 and "alert" not in "".join(re.findall("<[^>]*>", (
        text.replace("&lt;script&gt;alert(&quot;x&quot;)", ""))))  # fmt: skip
    assert HOSTILE in page.text
    assert f"refused {HOSTILE}" in page.text
    assert shlex.split(command(json.loads((out / "comparison.json").read_text())))[2] == HOSTILE


def test_a_name_is_never_a_path(folder):
    secret = folder / "secret.png"
    secret.write_bytes(png(99))
    path = next((folder / "cells").glob("m_0_rtn_W8A8*"))
    cell = json.loads(path.read_text()) | {"method": "../secret"}
    comparison = json.loads((folder / "comparison.json").read_text())
    comparison["methods"].append("../secret")
    (folder / "comparison.json").write_text(json.dumps(comparison))
    path.write_text(json.dumps(cell))
    text = make_page(folder)
    assert base64.b64encode(png(99)).decode() not in text
    assert "../secret at W8A8" in text  # as one without images


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("inspection/*", "holds no inspection/ of this model: repeat the command"),
        ("images/*float*", "holds no image of this float model"),
        ("images/*_rtn_W8A8*", "No images of rtn at W8A8"),
        ("cells/*_ptq4arvg_W6A6*", "holds no cell of ptq4arvg at W6A6, seed 0"),
        ("cells/*_ptq4arvg_W6A6*", "2 of the cells asked for have not been measured yet"),
        ("cells/*_W8A8*", "4 of the cells asked for have not been measured yet"),
        ("cells/*", "No cell at float has been measured yet"),
    ],
)
def test_what_the_folder_lacks_is_said(folder, gone, said):
    assert said not in make_page(folder)
    for path in folder.glob(gone):
        path.unlink()
    page = Checker(make_page(folder))
    assert said in page.text
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS


def test_parts_that_there_are_not_are_said(folder):
    for path in (folder / "inspection").iterdir():
        content = json.loads(path.read_text())
        content |= {"channels": None, "positions": None, "selection": None}
        path.write_text(json.dumps(content))
    text = make_page(folder)
    assert "No input of this model was scaled" in text
    assert "No linear of this model reads more than one position" in text
    assert "select is dgc, 4 of 8 rows kept" in text


def test_without_our_method_there_is_nothing_to_look_into(tmp_path):
    text = make_page(make_folder(tmp_path, methods=("rtn",)))
    assert "holds no cell of ptq4arvg at W6A6" in text
    for path in (tmp_path / "inspection").iterdir():
        path.unlink()
    assert "ptq4arvg was not compared: there is nothing to look into" in make_page(tmp_path)


def test_cells_of_other_comparisons_are_counted_only(folder):
    path = next((folder / "cells").glob("m_0_rtn_W6A6*"))
    cell = json.loads(path.read_text()) | {"method": "awq", "number": 77}
    (folder / "cells" / "m_0_awq_W6A6_0.json").write_text(json.dumps(cell))
    text = make_page(folder)
    assert "holds 1 more cells, of earlier comparisons" in text and "awq" not in text


def test_too_many_pictures_are_left_out_by_name(tmp_path):
    out = make_folder(tmp_path, models=("a", "b"), large=True)  # 20 of 0.4 MB
    text = make_page(out)
    assert len(text) < 5_000_000
    sources = Checker(text).images.values()
    assert len(sources) == 5 and sum(map(len, sources)) <= BUDGET + 1000
    assert text.count("Left out; see the end of this section.") == 3
    assert "leaves out the images of a (stress 30) at W6A6, b (stress 0) at W6A6" in text
    assert "b (stress 30) at W8A8; they are" in text and "a (stress 0) at W6A6" not in text


def test_figures_are_those_of_the_cells(folder):
    page = Checker(make_page(folder))
    assert "ptq4arvg at W6A6: 25.5 dB on average; the weakest is blocks.0.fc with 20.0 dB" \
        in page.text  # fmt: skip
    note = "blocks.0.fc: predicted 5.0 %, whole step 20.0 %, taken 10.0 % with share 0.5"
    assert note in page.text
    assert "lowers the measured error of 12 of 12 linears; rank correlation of prediction and " \
        "whole step 1.00, of the closed form's gain and whole step -1.00" in page.text  # fmt: skip
    assert "below -100 %" in page.text
    assert "the largest channel is 4 times the median before scaling, 1 times after" in page.text
    assert "3 grids follow the range of 3 positions, 50 % of the way" in page.text
    assert "4 of 8 rows are kept (median distance 6.50, of those left 2.50)" in page.text
    assert "row 7, unconditional: distance 8.00, kept" in page.text
    assert "9.0 (8.0 to 10.0)" in page.text
    assert "rotated, blocks of 64" in page.text
    assert "scaled, then rotated, blocks of 64" in page.text


def test_a_budget_is_shown_like_a_scheme(tmp_path):
    out = make_folder(tmp_path, schemes=("5.5 bits", "W8A8"))
    for path in (out / "inspection").iterdir():
        path.rename(path.with_name(path.name.replace("W6A6", "5.5-bits")))
    comparison = json.loads((out / "comparison.json").read_text()) | {"inspected": "5.5 bits"}
    (out / "comparison.json").write_text(json.dumps(comparison))
    text = make_page(out)
    page = Checker(text)
    assert "missing" not in text.split("</style>")[1]
    assert "5.5 bits (reached 5.41 to 5.47)" in page.text and "W8A8 (" not in page.text
    assert "ptq4arvg at 5.5 bits: 25.5 dB on average" in page.text
    assert "1. blocks.0.fc: 20.0 dB at W4A8" in page.text
    assert re.search("<td><code>blocks.1.fc</code></td><td>21.0</td>"
                     "<td>rotated, blocks of 64</td><td>W6A8</td>", text)  # fmt: skip
    assert "5.5 bits: GPS lowers the measured error of 12 of 12 linears" in page.text
    assert "rtn at 5.5 bits: 0.010, 5.41 bits a weight, 1.00 MB, Frechet" in page.text
    words = shlex.split(command(comparison))
    assert parse_goals(words[words.index("--schemes") + 1].split(","))[0].target_bits == 5.5


def test_the_command_is_one_that_there_is(folder):
    comparison = json.loads((folder / "comparison.json").read_text())
    words = shlex.split(command(comparison))
    assert words[:3] == ["ptq4arvg", "compare", "m"] and words.count("--stress") == 2
    registered = next(c for c in app.app.registered_commands if c.callback.__name__ == "compare")
    for word in words:
        if word.startswith("--"):
            assert word[2:] in registered.callback.__annotations__


def test_the_command_line(folder, tmp_path, capsys):
    assert main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"wrote  {folder / 'report.html'}\n") and "needs no network" in out
    assert main(["report", str(tmp_path)]) == 2
    assert "no comparison.json in" in capsys.readouterr().err
    (folder / "comparison.json").write_text("{}")
    assert main(["report", str(folder)]) == 2
    assert "is not what `ptq4arvg compare` writes (KeyError: 'models')" in capsys.readouterr().err


def test_a_page_too_large_is_refused(folder, monkeypatch):
    monkeypatch.setattr("ptq4arvg.report_html.page.LIMIT", 1000)
    with pytest.raises(ValueError, match=r"would take \d+ bytes; wanted at most 1000"):
        write_page(folder)
    assert not (folder / "report.html").exists()


def test_the_report_needs_no_torch():
    code = "import sys, ptq4arvg.report_html; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ticks_are_round_and_inside():
    assert Axis("", 0, 10).ticks() == [0, 2, 4, 6, 8, 10]
    assert Axis("", 0.001, 10, log=True).ticks() == [0.001, 0.01, 0.1, 1, 10]
    assert Axis("", 0.0125, 0.04, log=True).ticks() == pytest.approx([0.02, 0.03, 0.04])
    axis = Axis.over("", [3.0, 3.0])
    assert axis.lo < 3 < axis.hi and axis.ticks()
    assert Axis.over("", [], log=True).ticks()
    assert [plain_number(v) for v in (0.00001234, 123456.0, 0.5)] == ["0.0000123", "123456", "0.5"]


def test_rank_correlation():
    scipy = pytest.importorskip("scipy.stats")
    a, b = [1.0, 5.0, 2.0, 2.0, 9.0], [3.0, 1.0, 4.0, 1.0, 5.0]
    assert _rank_correlation(a, b) == pytest.approx(scipy.spearmanr(a, b).statistic, abs=1e-12)
    assert _rank_correlation([1.0, 1.0], [1.0, 2.0]) is None


def test_markup_escapes_what_is_not_markup():
    assert tag("b", "<", Markup("<i></i>"), title='"') == '<b title="&quot;">&lt;<i></i></b>'
    assert tag("img", src="a&b", hidden=True, alt=None) == '<img src="a&amp;b" hidden>'


def test_every_method_has_a_mark_of_its_own(tmp_path):
    names = ("rtn", "ptq4arvg", *(f"m{i}" for i in range(24)))
    record = read_record(make_folder(tmp_path, methods=names, schemes=("W6A6",)))
    marks = [method_mark(record, name) for name in names]
    assert len(set(marks)) == len(names) and marks[1] == (0, 0)
