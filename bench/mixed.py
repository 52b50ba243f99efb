#!/usr/bin/env python3
"""What a budget of weight bits buys when every linear gets its own scheme, against one for all.

    python bench/mixed.py [--models var-tiny,rar-tiny] [--seeds 3] [--out bench/results/mixed.csv]
    python bench/mixed.py --alone --models rar-tiny --out alone.csv

On bundled models, over several calibration seeds; the rows compared on are the same for all. With
``--alone`` every linear is quantized by itself, at every scheme, and what that does to the outputs
is compared with the estimate that the choice of schemes goes by.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from options import at_least, choices
from record import stamp, write_csv

import ptq4arvg
from ptq4arvg.allocation import Budget, assign
from ptq4arvg.calibration import check_selection
from ptq4arvg.evaluation import Agreement, agreement, evaluation_rows, float_logits
from ptq4arvg.evaluation.yardstick import linear_bytes
from ptq4arvg.methods import get_method
from ptq4arvg.models import BUNDLED
from ptq4arvg.numerics import SCHEMES
from ptq4arvg.sensitivity import Harm, sensitivities
from ptq4arvg.serialize import check_writable

MODELS = ("rar-tiny", "par-tiny", "var-tiny")
TARGETS = (4.5, 5.0, 5.5, 6.0, 7.0)  # at 4 and 8 there is nothing to choose
METHOD, EVALUATION_SEED, COMPARED = "ptq4arvg", 1000, 16

SHARED = ("model", "seed", "method", "kl", "top1_agreement", "relative_error")
COLUMNS = (*SHARED, "variant", "mean_bits", "weight_bytes", "predicted", *SCHEMES)
ALONE_COLUMNS = (*SHARED, "linear", "scheme", "estimate")


class Case:
    """A bundled model, the rows it is compared on, and its outputs for them."""

    def __init__(self, name: str, samples: int, keep: int) -> None:
        self.name, self.counts = name, (samples, keep)
        self.model = ptq4arvg.load_model(name)
        labels = torch.arange(COMPARED) * self.model.num_classes // COMPARED
        self.rows = evaluation_rows(self.model, labels, seed=EVALUATION_SEED)
        self.logits = float_logits(self.model, *self.rows)

    def calibration(self, seed: int) -> ptq4arvg.Calibration:
        """The calibration rows of a seed."""
        return ptq4arvg.calibrate(self.model, *self.counts, seed)

    def harm(self, rows: ptq4arvg.Calibration) -> tuple[Budget, Harm]:
        """A budget without limits, and the estimates for all linears."""
        budget = Budget.of(self.model, 8)
        harm = sensitivities(self.model, budget.plan, budget.free, budget.candidates,
                             get_method(METHOD), rows)  # fmt: skip
        return budget, harm

    def quantized(self, rows: ptq4arvg.Calibration, scheme: str, **options: Any):
        """(model, report, agreement) of one quantization."""
        model = ptq4arvg.load_model(self.name)
        report = ptq4arvg.quantize_(model, scheme, METHOD, rows, **options)
        return model, report, agreement(self.logits, model, *self.rows)

    def row(self, seed: int, close: Agreement) -> dict[str, Any]:
        """The columns that every row has."""
        return {"model": self.name, "seed": seed, "method": METHOD, "kl": close.kl,
                "top1_agreement": close.top1, "relative_error": close.relative_error}  # fmt: skip


def budgets(case: Case, seed: int) -> Iterator[dict[str, Any]]:
    """A row per scheme for all linears, then per budget; the linears are measured once."""
    rows = case.calibration(seed)
    for scheme in SCHEMES:
        model, report, close = case.quantized(rows, scheme)
        counts = {name: len(report.layers) * (name == scheme) for name in SCHEMES}
        yield case.row(seed, close) | counts | {
            "variant": scheme, "mean_bits": float(SCHEMES[scheme].w_bits),
            "weight_bytes": linear_bytes(model),
        }  # fmt: skip
    _, harm = case.harm(rows)
    for target in TARGETS:
        chosen = assign(Budget.of(case.model, target), harm)
        schemes = chosen.record()["schemes"]
        model, _, close = case.quantized(rows, "W6A6", overrides=schemes)
        counts = {name: list(schemes.values()).count(name) for name in SCHEMES}
        yield case.row(seed, close) | counts | {
            "variant": f"{target:g} bits", "mean_bits": chosen.mean_bits,
            "weight_bytes": linear_bytes(model), "predicted": chosen.predicted,
        }  # fmt: skip


def alone(case: Case, seed: int) -> Iterator[dict[str, Any]]:
    """A row per linear and scheme: what was estimated, and what quantizing only that does."""
    rows = case.calibration(seed)
    budget, harm = case.harm(rows)
    for name in harm:
        others = [other for other in budget.free if other != name]
        for scheme, estimate in harm[name].items():
            _, _, close = case.quantized(rows, scheme, ignore=others, pack=False)
            yield case.row(seed, close) | {"linear": name, "scheme": scheme, "estimate": estimate}


def rank_correlation(rows: list[dict[str, Any]]) -> float:
    """Spearman's, of the estimates and the divergences, or errors where tokens are continuous."""
    true = [row["relative_error"] if row["kl"] is None else row["kl"] for row in rows]
    ranks = [
        torch.tensor(values, dtype=torch.float64).argsort().argsort().double()
        for values in ([row["estimate"] for row in rows], true)
    ]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--keep", type=int, default=32)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench/results/mixed.csv"))
    arguments = parser.parse_args(argv)
    arguments.models = choices("--models", arguments.models, BUNDLED)
    if not arguments.models:
        raise ValueError(f"--models is empty; wanted some of {', '.join(BUNDLED)}")
    at_least("--seeds", arguments.seeds, 1)
    check_selection(arguments.samples, arguments.keep, "dgc")
    check_writable(arguments.out, folder=False)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run, print a line per row, write the CSV file. 2 for bad arguments."""
    try:
        arguments = _parse(argv)
    except ValueError as error:
        sys.stderr.write(f"mixed.py: {error}\n")
        return 2
    measure, columns = (alone, ALONE_COLUMNS) if arguments.alone else (budgets, COLUMNS)
    shared = stamp("cpu", torch.get_num_threads())
    shared |= {"samples": arguments.samples, "keep": arguments.keep}
    found: list[dict[str, Any]] = []
    for name in arguments.models:
        case = Case(name, arguments.samples, arguments.keep)
        for seed in range(arguments.seeds):
            for row in measure(case, seed):
                found.append(row | shared)
                shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
                sys.stdout.write(f"{shown}\n")
                sys.stdout.flush()
            write_csv(arguments.out, [*columns, *shared], found)
        if arguments.alone:
            own = [row for row in found if row["model"] == name]
            each = {s: rank_correlation([r for r in own if r["scheme"] == s]) for s in SCHEMES}
            each |= {"all": rank_correlation(own)}
            shown = ", ".join(f"{key} {value:.3f}" for key, value in each.items())
            sys.stdout.write(f"{name}: rank correlation {shown}\n")
    sys.stdout.write(f"wrote {arguments.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
