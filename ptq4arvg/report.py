"""What a run leaves behind for people: a grid of images, a table, and a JSON file.

A row is a dict with the keys of ``ROW_KEYS`` (more are allowed); figures that do not apply to it
are None. Every row was measured on the same machine with the same seeds.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .numerics import SCHEMES
from .serialize import pretty_json, write_file
from .tables import significant

__all__ = [
    "ROW_KEYS",
    "Block",
    "draw_grid",
    "markdown_table",
    "rich_table",
    "save_png",
    "to_picture",
    "write_report",
]

ROW_KEYS = (
    "method", "scheme", "stress", "sqnr_db", "worst_sqnr_db", "kl", "top1_agreement",
    "relative_error", "fd", "weight_bytes", "seconds_per_image",
)  # fmt: skip

_BACKGROUND, _INK, _FAINT, _FRAME = (255, 255, 255), (24, 24, 27), (113, 113, 122), (228, 228, 231)


@dataclass(frozen=True)
class Block:
    """A titled group of rows in a grid: (label, note below it, images [n, 3, H, W] in [0, 1])."""

    title: str
    rows: Sequence[tuple[str, str, Tensor]]


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow without FreeType has one bitmap font
        return ImageFont.load_default()


def _wrap(text: str, font: Any, width: int, draw: ImageDraw.ImageDraw) -> list[str]:
    """Words of ``text`` in as few lines of ``width`` pixels as they fit."""
    lines: list[str] = []
    for word in text.split():
        if lines and draw.textlength(f"{lines[-1]} {word}", font=font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def to_picture(image: Tensor, scale: int = 1) -> Image.Image:
    """One image [3, H, W] in [0, 1] as a picture, enlarged ``scale`` times without smoothing."""
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())  # [H, W, 3]
    size = (picture.width * scale, picture.height * scale)
    return picture.resize(size, Image.Resampling.NEAREST)


def draw_grid(
    blocks: Sequence[Block], columns: Sequence[str] = (), scale: int = 3, footnote: str = ""
) -> Image.Image:
    """A grid: a row of images per model, a block per condition, ``columns`` naming the images.

    All rows must hold the same number of images of one size. ValueError otherwise.
    """
    shapes = {tuple(images.shape) for block in blocks for _, _, images in block.rows}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4:
        raise ValueError(
            f"draw_grid: rows hold images of shapes {sorted(shapes)}; wanted one shape "
            "[n, 3, H, W] in all rows"
        )
    count, _, height, width = next(iter(shapes))
    if columns and len(columns) != count:
        raise ValueError(
            f"draw_grid: {len(columns)} column names for {count} images; wanted one each"
        )
    cell_w, cell_h, gap, margin, label_w = width * scale, height * scale, 6, 20, 190
    title_font, label_font, note_font, small_font = _font(22), _font(19), _font(14), _font(13)
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    heads = [_wrap(name, small_font, cell_w, probe) for name in columns]
    head_h = 17 * max((len(h) for h in heads), default=0) + (8 if heads else 0)
    title_h, row_h = 44, cell_h + gap
    total_w = 2 * margin + label_w + count * (cell_w + gap) - gap
    foot = _wrap(footnote, note_font, total_w - 2 * margin, probe)
    total_h = 2 * margin + sum(title_h + head_h + row_h * len(b.rows) + 10 for b in blocks)
    total_h += 20 * len(foot)
    canvas = Image.new("RGB", (total_w, total_h), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    y = margin
    for block in blocks:
        draw.text((margin, y), block.title, _INK, font=title_font)
        y += title_h - 10
        draw.line((margin, y, total_w - margin, y), _FRAME)
        y += 10
        for column, lines in enumerate(heads):
            x = margin + label_w + column * (cell_w + gap)
            for number, line in enumerate(lines):
                draw.text((x, y + 17 * number), line, _FAINT, font=small_font)
        y += head_h
        for label, note, images in block.rows:
            draw.text((margin, y + cell_h // 2 - 24), label, _INK, font=label_font)
            draw.text((margin, y + cell_h // 2 + 2), note, _FAINT, font=note_font, spacing=4)
            for column, image in enumerate(images):
                x = margin + label_w + column * (cell_w + gap)
                canvas.paste(to_picture(image, scale), (x, y))
                draw.rectangle((x - 1, y - 1, x + cell_w, y + cell_h), outline=_FRAME)
            y += row_h
        y += 10
    for number, line in enumerate(foot):
        draw.text((margin, y + 20 * number), line, _FAINT, font=note_font)
    return canvas


def save_png(image: Image.Image, path: str | Path, **texts: str) -> Path:
    """Write a PNG, with ``texts`` in it, under a temporary name and rename it."""
    buffer, info = io.BytesIO(), PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    image.save(buffer, format="PNG", optimize=True, pnginfo=info)
    return write_file(path, buffer.getvalue())


def _number(form: str, unit: float = 1.0) -> Callable[[Any], str]:
    return lambda value: "-" if value is None else format(value / unit, form)


def _name(row: Mapping[str, Any]) -> str:
    return {"float": "float", "rtn": "round to nearest"}.get(row["method"], row["method"])


def _divergence(value: float | None) -> str:
    return "-" if value is None else significant(value) if 0 < value < 0.01 else f"{value:.3f}"


def _error(value: float | None) -> str:
    return "-" if value is None else significant(value)


def _distance(row: Mapping[str, Any]) -> str:
    if row["fd"] is None:
        return "-"
    interval = row.get("fd_interval")
    text = f"{row['fd']:.2f}"
    return text if interval is None else f"{text} ({interval[0]:.2f} to {interval[1]:.2f})"


# Heading and text of every column, in order.
_COLUMNS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("model", lambda r: "plain" if not r["stress"] else f"stressed {r['stress']:g}"),
    ("scheme", lambda r: r["scheme"]),
    ("method", _name),
    ("bits", lambda r: _number(".2f")(r.get("mean_bits"))),
    ("SQNR dB", lambda r: _number(".1f")(r["sqnr_db"])),
    ("worst", lambda r: _number(".1f")(r["worst_sqnr_db"])),
    ("KL nats", lambda r: _divergence(r["kl"])),
    ("top-1", lambda r: _number(".1%")(r["top1_agreement"])),
    ("error", lambda r: _error(r["relative_error"])),
    ("Frechet distance", _distance),
    ("weights MB", lambda r: _number(".2f", 1e6)(r["weight_bytes"])),
    ("ms/image", lambda r: _number(".0f", 1e-3)(r["seconds_per_image"])),
)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Callable[..., str]]]:
    """The columns of a table of ``rows``: models of continuous tokens have no next token to
    compare, the others need no second measure of the same thing; mean bits say something where
    they are not a scheme's."""
    discrete = any(row["kl"] is not None for row in rows)
    hidden = {"error"} if discrete else {"KL nats", "top-1"}
    if all(row["scheme"] in ("float", *SCHEMES) for row in rows):
        hidden |= {"bits"}
    return [column for column in _COLUMNS if column[0] not in hidden]


def _check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        missing = [key for key in ROW_KEYS if key not in row]
        if missing:
            raise ValueError(f"report: a row lacks {', '.join(missing)}; it has {', '.join(row)}")


def rich_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> Any:
    """The rows as a table for the terminal (a ``rich.table.Table``)."""
    from rich import box
    from rich.table import Table

    _check_rows(rows)
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = _columns(rows)
    for number, (heading, _) in enumerate(columns):
        table.add_column(heading, justify="left" if number < 3 else "right", no_wrap=True)
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or rows[number + 1]["stress"] != row["stress"]
        table.add_row(*(text(row) for _, text in columns), end_section=last)
    return table


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, one line per row, ending in a newline."""
    _check_rows(rows)
    columns = _columns(rows)
    rule = ["---" if n < 3 else "---:" for n in range(len(columns))]
    cells = [[heading for heading, _ in columns], rule]
    cells += [[text(row) for _, text in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def write_report(path: str | Path, report: Mapping[str, Any]) -> Path:
    """Write a report with its ``rows`` as JSON. ValueError if a row lacks one of ``ROW_KEYS``."""
    _check_rows(report["rows"])
    return write_file(path, pretty_json(report))
