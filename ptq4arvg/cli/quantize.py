"""`ptq4arvg calibrate` and `ptq4arvg quantize`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..progress import make_progress
from .common import Source, closing, header, load, typed

__all__ = ["Request", "run_calibrate", "run_quantize"]


@dataclass(frozen=True)
class Request:
    """What `quantize` was asked for."""

    source: Source
    scheme: str | None
    target_bits: float | None
    decoder: str | None
    method: str
    out: Path | None
    ignore: list[str]
    overrides: list[str]
    options: list[str]
    calibration: Path | None
    parts: Path | None
    rows: dict[str, Any]  # arguments of ``calibrate``; with rows of a file, those typed in vain
    dry_run: bool
    overwrite: bool
    quiet: bool

    @property
    def goal(self) -> str:
        """The scheme, or the mean bits of a mixture. ValueError if both were given."""
        if self.target_bits is None:
            return self.scheme or "W6A6"
        if self.scheme is not None:
            raise ValueError(
                f"quantize: --scheme {self.scheme} and --target-bits {self.target_bits:g}: give "
                "one of them; --override PATTERN=SCHEME fixes the scheme of some linears"
            )
        return f"{self.target_bits:g} bits"


def run_calibrate(
    source: Source, out: Path, samples: int, keep: int, select: str, seed: int, quiet: bool
) -> None:
    """Sample rows and write them to a file."""
    header(f"calibrate {source[0]}", seed, quiet)
    from ..calibration import calibrate
    from ..calibration_file import save_calibration
    from ..distributed import current
    from ..serialize import check_writable

    check_writable(out, folder=False)
    model = load(source)
    with make_progress(quiet) as progress:
        rows = calibrate(model, samples, keep, seed, select, progress=progress)
    if current().rank:  # all processes have the same rows
        return
    save_calibration(rows, out)
    conditional = int((rows.labels != model.null_label).sum())
    closing(
        str(out),
        f"{len(rows.labels)} rows kept of {samples}: {conditional} conditional, "
        f"{len(rows.labels) - conditional} unconditional   hash {rows.hash[:12]}",
        typed("quantize", source[0], weights=source[1], tokenizer=source[2],
              stress=source[3] or None, calibration=out, out="OUT"),
    )  # fmt: skip


def _pairs(texts: list[str], flag: str) -> dict[str, str]:
    """NAME=VALUE arguments as a dict."""
    pairs = {}
    for text in texts:
        name, sign, value = text.rpartition("=")
        if not sign or not name or not value:
            raise ValueError(f"{flag} {text!r} has no '='; wanted NAME=VALUE")
        pairs[name] = value
    return pairs


def _options(texts: list[str], method: Any) -> dict[str, Any]:
    """NAME=VALUE options as YAML reads the value; ValueError if it is of the wrong kind."""
    import yaml

    known = method.options()
    searched = {f.name for f in fields(method) if "None" in str(f.type)}
    values: dict[str, Any] = {}
    for name, text in _pairs(texts, "--option").items():
        try:
            value, default = yaml.safe_load(text), known.get(name)
        except yaml.YAMLError:
            raise ValueError(f"--option {name}={text}: that value cannot be read") from None
        if isinstance(default, float) and not isinstance(value, bool):
            with contextlib.suppress(TypeError, ValueError):
                value = float(value)  # an int, or 1e-3, which is text to YAML
        empty = value is None and name in searched
        if default is not None and not empty and type(value) is not type(default):
            raise ValueError(
                f"--option {name}={text}: {value!r} is a {type(value).__name__}; wanted a "
                f"{type(default).__name__}, like the default {default!r}"
            )
        values[name] = value
    return values


def _print_plan(model: Any, plan: list[Any], budget: Any = None) -> None:
    """The table of --dry-run: every linear, its bits, its bytes, what its input folds into.

    budget: of a mixture, which is not measured here; its bytes are those of the target.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("layer", "role", "weight", "bits"):
        table.add_column(heading, no_wrap=True)
    for heading in ("half precision", "packed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("input transform")
    before = after = 0
    for p in plan:
        weight = model.transformer.get_submodule(p.name).weight
        half = 2 * weight.numel()
        packed = half * p.scheme.w_bits // 16 if p.scheme else half
        open_ = budget is not None and p.name in budget.free
        fold = f"folds into {p.spec.fold}" if p.spec.fold else f"none: {p.spec.no_fold}"
        table.add_row(
            p.name, p.spec.role, "x".join(map(str, weight.shape)),
            "measured" if open_ else p.scheme.name if p.scheme else "float",
            str(half), "" if open_ else str(packed),
            fold if p.scheme else "",
        )  # fmt: skip
        before, after = before + half, after + packed
    if budget is not None:
        weights = sum(budget.sizes.values())
        after = before - 2 * weights + int(weights * budget.target / 8)
    kept = sum(p.scheme is None for p in plan)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    print(
        f"{len(plan)} linears, {len(plan) - kept} to quantize, {kept} kept in float: "
        f"{before / 1e6:.2f} MB -> {after / 1e6:.2f} MB"
    )
    if budget is not None:
        names = ", ".join(scheme.name for scheme in budget.candidates)
        print(
            f"{len(budget.free)} linears get one of {names} by what each costs the outputs, for "
            f"at most {budget.target:g} bits on average; that is measured when the model is "
            "quantized"
        )


_ATTENTION = {"float": "", "simulated": "attention simulated, ", "int8": "attention in integers, "}


def run_quantize(request: Request) -> None:
    """Plan, calibrate, quantize, save; or stop after the plan."""
    r = request
    if not r.dry_run and r.out is None:
        raise ValueError("quantize: no --out; give a folder for the checkpoint, or --dry-run")
    if r.calibration is not None and r.rows:
        raise ValueError(
            f"quantize: --{next(iter(r.rows))} is for rows that are sampled now; those of "
            f"--calibration {r.calibration} are there already. Leave one of them out"
        )
    header(f"quantize {r.source[0]} to {r.goal} by {r.method}", r.rows.get("seed"), r.quiet)
    from ..allocation import Budget
    from ..attention import check_attention
    from ..block_parts import BlockParts
    from ..calibration import calibrate
    from ..checkpoint.save import check_target
    from ..decoder import check_decoder
    from ..distributed import current
    from ..methods import get_method
    from ..numerics import get_scheme
    from ..pipeline import quantize_
    from ..plan import make_plan, planned

    # Everything that can be wrong with the request is found before the first minute of work.
    method = get_method(r.method)
    method = method.with_options(**_options(r.options, method))
    if not method.integer and not r.dry_run:
        raise ValueError(
            f"quantize: method {method.name!r} has no integer path ({method.no_integer}), so there "
            "is no checkpoint to write; quantize_(..., pack=False) simulates it"
        )
    if r.parts is not None and not method.resumable:
        raise ValueError(
            f"quantize: method {method.name!r} does not learn block by block, so that --parts "
            "would stay empty; leave it out"
        )
    overrides = _pairs(r.overrides, "--override")
    if r.out is not None:
        check_target(r.out, r.overwrite)
    decoder = None if r.decoder is None else get_scheme(r.decoder)
    model = load(r.source)
    check_attention(model, method.attention)
    convolutions = {} if decoder is None else check_decoder(model)
    budget = None
    if r.target_bits is None:
        plan = make_plan(model.linears(), r.goal, r.ignore, overrides)
    else:
        budget = Budget.of(model, r.target_bits, r.ignore, overrides)
        plan = budget.plan
    planned(plan)
    if r.dry_run:
        _print_plan(model, plan, budget)
        if decoder is not None:
            half = 2 * sum(conv.weight.numel() for conv in convolutions.values())
            print(
                f"{len(convolutions)} convolutions of the tokenizer's decoder to {decoder.name}: "
                f"{half / 1e6:.2f} MB -> {half * decoder.w_bits / 16e6:.2f} MB"
            )
        return None
    with make_progress(r.quiet) as progress:
        if r.calibration is None:
            rows = calibrate(model, **r.rows, progress=progress)
        else:
            from ..calibration_file import load_calibration

            rows = load_calibration(r.calibration)
            if rows.model not in ("", model.name):
                raise ValueError(
                    f"{r.calibration} holds rows of {rows.model}; wanted those of {model.name}: "
                    f"ptq4arvg calibrate {model.name} --out FILE"
                )
        report = quantize_(
            model, "W6A6" if budget else r.goal, method, rows, ignore=r.ignore,
            overrides=overrides, target_bits=r.target_bits, progress=progress,
            decoder=decoder, parts=r.parts,
        )  # fmt: skip
    if current().rank:  # all processes have the same model
        return None
    from ..checkpoint import save_quantized

    digest = save_quantized(model, r.out, overwrite=r.overwrite)
    if r.parts is not None:
        BlockParts.remove(r.parts)  # only now can nothing be lost of them
    before = sum(layer.bytes_before for layer in report.layers)
    if report.allocation:
        schemes = list(report.allocation["schemes"].values())
        counts = ", ".join(f"{schemes.count(name)} {name}" for name in sorted(set(schemes)))
        print(f"schemes {counts}: {report.allocation['mean_bits']:.2f} bits a weight on average")
    if model.sampling_note:
        print(model.sampling_note)
    drawn = ""
    if report.decoder:
        drawn = (
            f", decoder {report.decoder['scheme']}: images within "
            f"{report.decoder['psnr_db']:.1f} dB PSNR of the float decoder's"
        )
    return closing(
        f"{r.out}   hash {digest[:12]}   {len(report.layers)} linears in integers, "
        f"{len(report.kept)} in float, {_ATTENTION[method.attention]}"
        f"weights {before / 1e6:.2f} MB -> "
        f"{report.weight_bytes / 1e6:.2f} MB",
        f"SQNR {report.sqnr_db:.1f} dB on average, worst {report.worst.sqnr_db:.1f} dB in "
        f"{report.worst.name}{drawn}",
        typed("generate", r.out, classes="0-7", out="images"),
    )
