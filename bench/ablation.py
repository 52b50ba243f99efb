#!/usr/bin/env python3
"""What each part of the method brings: switch them off in turn, over several calibration seeds.

    python bench/ablation.py [--seeds 3] [--images 128] [--out bench/results/ablation.csv]

On the bundled model, plain and stressed. Every row is a calibration seed and a variant; the rows
compared on (next-token KL, top-1) and the images (Frechet distance in the bundled feature space)
are the same for all. Rows are written as they are measured; an interrupted run goes on where it
stopped, unless the commit or the settings are others. A summary over the seeds ends it.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from options import at_least
from record import stamp

import ptq4arvg
from ptq4arvg.calibration import check_selection
from ptq4arvg.evaluation import (
    FeatureStatistics,
    agreement,
    distance_interval,
    evaluation_rows,
    float_logits,
    load_features,
    load_reference,
)
from ptq4arvg.serialize import check_writable

MODEL, STRESS, EVALUATION_SEED = "var-tiny", (0.0, 30.0), 1000

COLUMNS = ("stress", "seed", "variant", "kl", "top1_agreement", "logit_error", "sqnr_db",
           "worst_sqnr_db", "worst_layer", "fd", "fd_low", "fd_high")  # fmt: skip

# SmoothQuant, said with this method's options: the paper adds its three parts to it in turn.
SMOOTHQUANT = {
    "smooth": 0.5, "center": False, "gps": False, "granularity": "tensor", "rounding": "nearest",
    "activation_range": "minmax", "weight_range": "minmax", "bias_correction": False,
    "rotation": "none",
}  # fmt: skip
WITH_GPS = SMOOTHQUANT | {"gps": True}
WITH_STWQ = WITH_GPS | {"granularity": "group"}

# name -> (scheme, selection of calibration rows, images are drawn, options of quantize_)
VARIANTS: dict[str, tuple[str, str, bool, dict[str, Any]]] = {
    "W8A8": ("W8A8", "dgc", True, {}),
    "W4A8": ("W4A8", "dgc", True, {}),
    "W6A8": ("W6A8", "dgc", True, {}),
    "W6A6": ("W6A6", "dgc", True, {}),
    "W8A8 without rotations": ("W8A8", "dgc", False, {"rotation": "none"}),
    "W4A8 without rotations": ("W4A8", "dgc", False, {"rotation": "none"}),
    "W6A6 without rotations": ("W6A6", "dgc", False, {"rotation": "none"}),
    "W6A6 all inputs rotated": ("W6A6", "dgc", False, {"rotation": "all"}),
    "W6A6 without GPS": ("W6A6", "dgc", False, {"gps": False}),
    "W6A6 without smoothing": ("W6A6", "dgc", False, {"smooth": 0.0}),
    "W6A6 without GPS, smoothing, centring": (
        "W6A6", "dgc", False, {"gps": False, "smooth": 0.0, "center": False},
    ),
    "W6A6 without STWQ": ("W6A6", "dgc", False, {"granularity": "tensor"}),
    "W6A6 with the paper's token groups": ("W6A6", "dgc", False, {"granularity": "group"}),
    "W6A6 without DGC (random rows)": ("W6A6", "random", False, {}),
    "W6A6 without range search": ("W6A6", "dgc", False, {"activation_range": "minmax"}),
    "W6A6 without bias correction": ("W6A6", "dgc", False, {"bias_correction": False}),
    "W6A6 without GPTQ": ("W6A6", "dgc", False, {"rounding": "nearest"}),
    "W6A6 with coordinate descent": ("W6A6", "dgc", False, {"rounding": "descent"}),
    "W4A8 without coordinate descent": ("W4A8", "dgc", False, {"rounding": "gptq"}),
    "W4A8 without both, GPTQ and descent": ("W4A8", "dgc", False, {"rounding": "nearest"}),
    "W6A6 sinks in float": ("W6A6", "dgc", False, {"sink": "float"}),
    "W6A6 attention products quantized": (
        "W6A6", "dgc", False, {"attention": "simulated", "pack": False},
    ),
    "W6A6 attention products quantized, uniform softmax": (
        "W6A6", "dgc", False, {"attention": "simulated", "softmax": "uniform", "pack": False},
    ),
    "W6A6 research code": (
        "W6A6", "research_code", False, {"compat": "research", "attention": "float"},
    ),
    "W6A6 SmoothQuant": ("W6A6", "random", False, SMOOTHQUANT),
    "W6A6 SmoothQuant + GPS": ("W6A6", "random", False, WITH_GPS),
    "W6A6 SmoothQuant + GPS + STWQ": ("W6A6", "random", False, WITH_STWQ),
    "W6A6 SmoothQuant + GPS + STWQ + DGC": ("W6A6", "dgc", False, WITH_STWQ),
    "W6A6 round to nearest": ("W6A6", "dgc", True, {"method": "rtn"}),
}  # fmt: skip


def measure(
    seeds: int, images: int, samples: int, keep: int, done: set[tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    """One row of the CSV file per stress, seed and variant that is not ``done``; "float" first."""
    network, reference = load_features(), load_reference()
    for stress in STRESS:
        model = ptq4arvg.load_model(MODEL, stress=stress)
        labels = torch.arange(images) % model.num_classes
        compared = evaluation_rows(model, labels[: model.num_classes], seed=EVALUATION_SEED)
        logits = float_logits(model, *compared)

        def distance(model, labels=labels) -> dict[str, float]:
            with torch.inference_mode():
                features = network.features(model.generate(labels.tolist(), seed=EVALUATION_SEED))
            low, high = distance_interval(features, *reference)
            fd = FeatureStatistics().update(features).distance(*reference)
            return {"fd": fd, "fd_low": low, "fd_high": high}

        if (str(stress), "", "float") not in done:
            yield {"stress": stress, "seed": "", "variant": "float"} | distance(model)
        for seed in range(seeds):
            wanted = {v: k for v, k in VARIANTS.items() if (str(stress), str(seed), v) not in done}
            rows = {
                select: ptq4arvg.calibrate(model, samples, keep, seed, select)
                for select in sorted({v[1] for v in wanted.values()})
            }
            for variant, (scheme, select, draws, options) in wanted.items():
                other = ptq4arvg.load_model(MODEL, stress=stress)
                report = ptq4arvg.quantize_(other, scheme, calibration=rows[select], **options)
                close = agreement(logits, other, *compared)
                row = {"stress": stress, "seed": seed, "variant": variant, "kl": close.kl,
                       "top1_agreement": close.top1, "logit_error": close.relative_error,
                       "sqnr_db": report.sqnr_db, "worst_sqnr_db": report.worst.sqnr_db,
                       "worst_layer": report.worst.name}  # fmt: skip
                yield row | (distance(other) if draws else {})


def read_done(path: Path, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier run of the same commit and settings; the date may differ."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    settings = {k: str(v) for k, v in shared.items() if k != "date"}
    return [row for row in rows if settings.items() <= row.items()]


def summary(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, one line per variant, plain and stressed side by side."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells = [f"{variant:40}"]
        for stress in STRESS:
            found = [r for r in rows if r["variant"] == variant and float(r["stress"]) == stress]
            for key, form in (("kl", "9.5f"), ("top1_agreement", "7.3f"), ("sqnr_db", "6.1f"),
                              ("fd", "6.2f")):  # fmt: skip
                values = [float(r[key]) for r in found if r.get(key) not in (None, "")]
                cells.append(format(mean(values), form) if values else " " * int(float(form[:-1])))
        lines.append(" ".join(cells))
    head = " ".join([" " * 40] + ["       KL   top-1   SQNR     FD"] * len(STRESS))
    return "\n".join([head, *lines])


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--keep", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("bench/results/ablation.csv"))
    arguments = parser.parse_args(argv)
    at_least("--seeds", arguments.seeds, 1)
    at_least("--images", arguments.images, 2)  # a distance needs their covariance
    check_selection(arguments.samples, arguments.keep, "dgc")
    check_writable(arguments.out, folder=False)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run, print a line per row, write the CSV file and print the summary. 2 for bad arguments."""
    try:
        arguments = _parse(argv)
    except ValueError as error:
        sys.stderr.write(f"ablation.py: {error}\n")
        return 2
    shared = stamp("cpu", torch.get_num_threads())
    shared |= {"images": arguments.images, "samples": arguments.samples, "keep": arguments.keep}
    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    rows, start = read_done(out, shared), time.monotonic()
    sys.stdout.write(f"{len(rows)} rows are there already\n" if rows else "starting\n")
    sys.stdout.flush()
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *shared], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        done = {(row["stress"], row["seed"], row["variant"]) for row in rows}
        settings = (arguments.seeds, arguments.images, arguments.samples, arguments.keep)
        for row in measure(*settings, done):
            rows.append(row)
            writer.writerow(row | shared)
            file.flush()
            shown = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
            sys.stdout.write(f"{time.monotonic() - start:6.0f} s  {shown}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{summary(rows)}\nwrote {out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
