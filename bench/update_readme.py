#!/usr/bin/env python3
"""Put measured tables between the markers of README.md.

    python bench/update_readme.py demo/report.json
    python bench/update_readme.py bench/results/ablation.csv
    python bench/update_readme.py bench/results/mixed.csv
    python bench/update_readme.py bench/results/compare.csv
    python bench/update_readme.py bench/results/attention.csv
    python bench/update_readme.py bench/results/decoder.csv
    python bench/update_readme.py bench/results/decoder-images.csv
    python bench/update_readme.py bench/results/generate-var-d16-kv8.csv

A demo's picture goes with its report: grid.png beside it is copied to bench/results/demo/, or to
bench/results/demo-NAME/ for another model than var-tiny, which has a table of its own, too.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from timing import geometric_mean

from ptq4arvg.demo import MODEL
from ptq4arvg.errors import closest
from ptq4arvg.report import markdown_table
from ptq4arvg.tables import markdown_pivot, significant

ROOT = Path(__file__).resolve().parent.parent


def replace_table(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` between the markers of ``name``. ValueError unless both are there
    once."""
    begin, end = f"<!-- {name}-table -->", f"<!-- /{name}-table -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"README.md wants one {begin} and one {end} after it")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{table}{end}{tail}"


def ablation_table(rows: list[dict[str, str]]) -> str:
    """Mean (least to largest) next-token KL over the seeds, plain and stressed, in Markdown."""
    stresses = sorted({float(row["stress"]) for row in rows})
    seeds = len({row["seed"] for row in rows if row["seed"]})
    title = {s: f"stressed {s:g}" if s else "plain" for s in stresses}
    lines = [
        f"| KL, mean of {seeds} seeds (range) | " + " | ".join(title[s] for s in stresses) + " |",
        "|---" + "|---:" * len(stresses) + "|",
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows if row["kl"]):
        cells = []
        for s in stresses:
            found = [r for r in rows if r["variant"] == variant and float(r["stress"]) == s]
            kl = [float(r["kl"]) for r in found]
            cells.append(_with_range(kl) if kl else "")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _with_range(values: list[float]) -> str:
    middle, low, high = (significant(v, 3) for v in (mean(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def mixed_table(rows: list[dict[str, str]]) -> str:
    """Mean KL over the seeds (error where there is none) and bytes of the weights, in Markdown."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"| mean of {seeds} seeds (MB) | " + " | ".join(f"`{model}`" for model in models) + " |",
        "|---" + "|---:" * len(models) + "|",
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells = []
        for model in models:
            found = [r for r in rows if (r["model"], r["variant"]) == (model, variant)]
            value = mean(float(r["kl"] or r["relative_error"]) for r in found)
            size = mean(float(r["weight_bytes"]) for r in found) / 1e6
            cells.append(f"{significant(value)} ({size:.2f})")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def compare_table(rows: list[dict[str, str]]) -> str:
    """A table per scheme of a comparison's summary: what ``markdown_pivot`` shows, and the bytes of
    the weights, of all models together, over those of the first method."""
    tables = []
    for scheme in dict.fromkeys(row["scheme"] for row in rows if row["scheme"] != "float"):
        here = [_typed(row) for row in rows if row["scheme"] == scheme]
        sizes: dict[str, float] = {}
        for row in here:
            sizes[row["method"]] = sizes.get(row["method"], 0.0) + row.get("weight_bytes", 0.0)
        lines = markdown_pivot(here, scheme).splitlines()
        first = next(iter(sizes.values()))
        ends = [" bytes |", "---:|", *(f" {size / first:.2f} |" for size in sizes.values())]
        tables.append("\n".join(line + end for line, end in zip(lines, ends, strict=True)))
    return "\n\n".join(tables) + "\n"


def _typed(row: dict[str, str]) -> dict[str, Any]:
    """A row of a comparison's summary.csv with numbers for their texts."""
    typed: dict[str, Any] = {name: row[name] for name in ("model", "scheme", "method")}
    typed["stress"] = float(row["stress"])
    if row["refused"]:
        return typed | {"refused": row["refused"]}
    return typed | {
        "closeness": float(row["closeness"]), "integer": row["integer"] != "False",
        "weight_bytes": float(row["weight_bytes"]),
        **{name: float(row[name]) for name in ("target_bits", "mean_bits") if row.get(name)},
    }  # fmt: skip


def attention_table(rows: list[dict[str, str]]) -> str:
    """Geometric means of the steps' ratios per model and number of images, in Markdown."""
    ours = [row for row in rows if row["candidate"] == "int8"]
    peers = [name for name in ("float32", "bfloat16") if ours[0].get(f"x_{name}")]
    lines = [
        "| model | images | " + " | ".join(f"times faster than {name}" for name in peers) + " |",
        "|---|---:" + "|---:" * len(peers) + "|",
    ]
    for model, images in dict.fromkeys((row["model"], row["images"]) for row in ours):
        steps = [row for row in ours if (row["model"], row["images"]) == (model, images)]
        means = [geometric_mean(float(row[f"x_{name}"]) for row in steps) for name in peers]
        lines.append(f"| {model} | {images} | " + " | ".join(f"{m:.1f}" for m in means) + " |")
    return "\n".join(lines) + "\n"


def decoder_table(rows: list[dict[str, str]]) -> str:
    """Ratios per model and number of images, in Markdown."""
    ours = [row for row in rows if row["kernel"]]
    peers = [name for name in ("float32", "bfloat16") if ours[0].get(f"x_{name}")]
    lines = [
        "| model | images | ms an image | " + " | ".join(f"times faster than {p}" for p in peers)
        + " |",
        "|---|---:|---:" + "|---:" * len(peers) + "|",
    ]  # fmt: skip
    for row in ours:
        each = float(row["median_ms"]) / int(row["images"])
        ratios = " | ".join(f"{float(row[f'x_{name}']):.1f}" for name in peers)
        lines.append(f"| {row['model']} | {row['images']} | {each:.0f} | {ratios} |")
    return "\n".join(lines) + "\n"


def decoder_images_table(rows: list[dict[str, str]]) -> str:
    """PSNR per scheme and model, in Markdown."""
    ours = [row for row in rows if row["kernel"]]
    models = list(dict.fromkeys(row["model"] for row in ours))
    lines = [
        "| PSNR, dB | " + " | ".join(f"`{model}`" for model in models) + " |",
        "|---" + "|---:" * len(models) + "|",
    ]
    for scheme in dict.fromkeys(row["candidate"] for row in ours):
        found = {row["model"]: row["psnr_db"] for row in ours if row["candidate"] == scheme}
        cells = " | ".join(f"{float(found[model]):.1f}" for model in models)
        lines.append(f"| {scheme} | {cells} |")
    return "\n".join(lines) + "\n"


def generate_table(rows: list[dict[str, str]]) -> str:
    """Seconds of a call and ratios of its variants, in Markdown."""
    lines = [
        "| variant | tokens, s | pixels, s | call, s | times faster than bfloat16 | memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        seconds = [row[f"seconds_{part}"] for part in ("tokens", "decode", "call")]
        cells = [f"{float(value):.1f}" for value in seconds]
        ratios = [f"{float(row[name]):.2f}" for name in ("x_bfloat16", "memory_bfloat16")]
        lines.append(f"| {row['variant']} | " + " | ".join(cells + ratios) + " |")
    return "\n".join(lines) + "\n"


TABLES = {  # by the name of the CSV file
    "ablation": ablation_table, "mixed": mixed_table, "compare": compare_table,
    "compare-additions": compare_table, "compare-rotations": compare_table,
    "compare-attention": compare_table, "attention": attention_table,
    "decoder": decoder_table, "decoder-images": decoder_images_table,
    "generate-var-d16-kv8": generate_table,
}  # fmt: skip


def csv_table(path: Path) -> str:
    """The table of README.md that is made of a CSV file. ValueError where none is."""
    if path.stem not in TABLES:
        raise ValueError(
            f"README.md has no table of {path.name}; wanted one of {', '.join(TABLES)}, or the "
            f"report.json of a demo. {closest(path.stem, TABLES)}"
        )
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    if not rows:
        raise ValueError(f"{path} has no rows; wanted a whole record")
    try:
        return TABLES[path.stem](rows)
    except KeyError as error:
        raise ValueError(f"{path} has no column {error}; wanted a whole record") from None
    except (IndexError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no whole record ({error})") from None


def demo_table(path: Path) -> tuple[str, str]:
    """(name, table) of a demo's report. ValueError where it is none."""
    try:
        report = json.loads(path.read_text())
        name = "demo" if report["model"] == MODEL else f"demo-{report['model']}"
        return name, markdown_table(report["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no report of a demo ({error}); wanted a report.json as `ptq4arvg demo` "
            "writes it, or a CSV file of bench/results"
        ) from None


def update(path: Path) -> None:
    """Update README.md from ``path``, and bench/results/demo/ with a demo's report."""
    if not path.is_file():
        raise ValueError(
            f"{path} is no file; wanted the report.json of a demo, or a CSV file of bench/results"
        )
    readme = ROOT / "README.md"
    text = readme.read_text()
    if path.suffix == ".csv":
        readme.write_text(replace_table(text, path.stem, csv_table(path)))
        return
    name, table = demo_table(path)
    target = ROOT / "bench" / "results" / name
    grid = path.with_name("grid.png")
    if not grid.is_file():
        raise ValueError(f"{grid} is missing; a demo writes it beside its report")
    readme.write_text(replace_table(text, name, table))
    target.mkdir(parents=True, exist_ok=True)
    for file, to in ((grid, target / "grid.png"), (path, target / "report.json")):
        if file.resolve() != to.resolve():
            shutil.copyfile(file, to)


def main(argv: list[str] | None = None) -> int:
    """Update what the file named in ``argv`` is for. 2 if it is for nothing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    try:
        update(parser.parse_args(argv).file)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"update_readme.py: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
