"""The fair table: models, methods, schemes and calibration seeds, measured with one yardstick.

A cell is one quantization: (model, stress, method, scheme, calibration seed); a budget of bits, as
in "5.5 bits", counts as a scheme. All cells of a model share the calibration rows of their seed,
the rows compared on, and the seeds of the images. Each is written to a file of its own as soon as
it is measured, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import __version__, ops
from .calibration import Calibration, calibrate, check_selection
from .cells import FLOAT, cell_name, inspection_name, read_cells, read_settings
from .collected import Collected
from .errors import closest
from .evaluation import Yardstick, draw_images
from .goals import Goal, parse_goal, parse_goals
from .inspection import inspect_
from .methods import METHODS, Method, get_method
from .models import BUNDLED, ARVGModel, load_model
from .models.stress import check_severity
from .pipeline import quantize_
from .serialize import pretty_json, write_file

__all__ = ["ADDITIONS", "Comparison", "all_methods", "parse_method", "run_comparison"]

# What can be added to a method's name, as in "smoothquant+stwq": options that compose with all, but
# rotations not with those that rotate or learn for themselves.
ADDITIONS: Mapping[str, dict[str, Any]] = {
    "stwq": {"granularity": "auto"},
    "rot": {"rotation": "measured"},
    "rotfused": {"rotation": "fused"},
    "rotall": {"rotation": "all"},
    "norot": {"rotation": "none"},
    "mse": {"activation_range": "mse", "weight_range": "mse"},
    "gptq": {"rounding": "gptq"},
    "descent": {"rounding": "descent"},
    "kv8": {"attention": "int8"},
}
EVALUATION_SEED = 1000  # of the images and the rows compared on; calibration seeds are below
FLOAT_SEEDS = 10  # float draws: another one is within their span nine times in eleven
SHOWN = 8  # images kept of the first calibration seed
POLL = 1.0  # seconds between looks at what other processes have measured

Progress = Callable[[str, int, int], None]
Shared = tuple[Calibration, Collected]  # rows, and what the float model's linears read of them


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how much is measured of each.

    schemes: names, or mean bits such as "5.5" for mixtures; kept as ``Goal.name`` has them.
    stresses: severities of the function-preserving stress, 0 for none. seeds: number of calibration
    seeds. samples, keep: calibration rows drawn and kept; images: drawn with each model of
    the first calibration seed; compared: images whose rows are compared under teacher forcing.
    """

    models: tuple[str, ...]
    methods: tuple[str, ...]
    schemes: tuple[str, ...] = ("W8A8", "W6A6", "W4A8")
    stresses: tuple[float, ...] = (0.0, 30.0)
    seeds: int = 3
    samples: int = 64
    keep: int = 32
    images: int = 64
    compared: int = 16
    select: str = "dgc"
    settings: dict[str, Any] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        for name in self.models:
            if name not in BUNDLED:
                raise ValueError(
                    f"compare: {name!r} is not bundled; wanted some of {', '.join(BUNDLED)}. "
                    f"{closest(name, BUNDLED)}"
                )
        for method in self.methods:
            parse_method(method)
        names = tuple(goal.name for goal in parse_goals(self.schemes))
        object.__setattr__(self, "schemes", names)
        if self.seeds < 1 or self.images < 2:
            raise ValueError(
                f"compare: seeds {self.seeds}, images {self.images}; wanted at least one "
                "calibration seed and 2 images"
            )
        for stress in filter(None, self.stresses):
            check_severity(stress)
        check_selection(self.samples, self.keep, self.select)
        # What a cell depends on beside its own name: cells of other settings are not comparable.
        fields = ("samples", "keep", "images", "compared", "select")
        values = {name: getattr(self, name) for name in fields}
        self.settings.update(values | {"version": __version__, "torch": torch.__version__})

    @property
    def inspected(self) -> Goal | None:
        """Where the package's own method is looked into: at the first scheme of 6-bit inputs, or
        the first scheme, or the first budget; None where the method is not compared."""
        if "ptq4arvg" not in self.methods:
            return None
        goals = parse_goals(self.schemes)
        schemes = [goal for goal in goals if goal.scheme]
        six = [goal for goal in schemes if goal.scheme.a_bits == 6]
        return (six or schemes or goals)[0]

    def cells(self, model: str, stress: float) -> list[dict[str, Any]]:
        """The cells of one model: its float rows first, then every quantization."""
        base = {"model": model, "stress": stress}
        found = [
            base | {"method": FLOAT, "scheme": FLOAT, "seed": seed} for seed in range(FLOAT_SEEDS)
        ]
        for seed in range(self.seeds):
            for scheme in self.schemes:
                for method in self.methods:
                    found.append(base | {"method": method, "scheme": scheme, "seed": seed})
        return found


def parse_method(text: str) -> Method:
    """A method with additions, as in "smoothquant+stwq+gptq". ValueError for an unknown part."""
    name, *added = text.split("+")
    options: dict[str, Any] = {}
    for part in added:
        if part not in ADDITIONS:
            raise ValueError(
                f"compare: method {text!r}: {part!r} is no addition; wanted "
                f"{', '.join(ADDITIONS)}. {closest(part, ADDITIONS)}"
            )
        options |= ADDITIONS[part]
    return get_method(name, **options)


def _open(out: Path, comparison: Comparison) -> None:
    """Note what is measured. ValueError if the folder holds cells of other settings."""
    path, there = out / "comparison.json", read_settings(out)
    if there is not None:
        for name, value in comparison.settings.items():
            if there.get(name) != value:
                raise ValueError(
                    f"compare: {str(out)!r} holds cells of {name} {there.get(name)!r}, not "
                    f"{value!r}, which are not comparable. Choose another --out"
                )
    inspected = comparison.inspected
    content = asdict(comparison) | {
        "inspected": inspected and inspected.name, "isa": ops.isa(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    write_file(path, pretty_json(content))


def run_comparison(
    comparison: Comparison,
    out: Path,
    progress: Progress | None = None,
    on_cell: Callable[[dict[str, Any]], None] | None = None,
    jobs: int = 1,
) -> list[dict[str, Any]]:
    """Measure every cell that ``out`` does not hold yet; returns all of them.

    jobs: processes that share the models; ``on_cell`` is not called from others than this one.
    A cell that a method refuses (with a ValueError) is kept with its reason as "refused".
    """
    out = Path(out)
    _open(out, comparison)
    progress = progress or (lambda *_: None)
    pairs = [(m, s) for m in comparison.models for s in comparison.stresses]
    names = [cell_name(cell) for pair in pairs for cell in comparison.cells(*pair)]
    numbers = {name: number for number, name in enumerate(names)}
    if jobs > 1:
        _in_parallel(comparison, out, pairs, numbers, jobs, progress)
    else:
        for pair in pairs:
            _measure_model(comparison, out, pair, numbers, progress, on_cell)
    return [cell for cell in read_cells(out) if cell_name(cell) in numbers]


def _done(out: Path, numbers: Mapping[str, int]) -> int:
    return len(numbers.keys() & {path.stem for path in (out / "cells").glob("*.json")})


def _in_parallel(
    comparison: Comparison, out: Path, pairs: Sequence[tuple[str, float]],
    numbers: Mapping[str, int], jobs: int, progress: Progress,
) -> None:  # fmt: skip
    """A model of one stress goes to one process, which has its share of the threads.

    The last ones first: the bundled models are in the order of what they take.
    """
    threads = max(torch.get_num_threads() // jobs, 1)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,))
    try:
        left = {
            pool.submit(_measure_model, comparison, out, pair, numbers) for pair in reversed(pairs)
        }
        while left:
            progress("cells", _done(out, numbers), len(numbers))
            finished, left = wait(left, timeout=POLL, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        progress("cells", _done(out, numbers), len(numbers))
    finally:
        pool.shutdown(cancel_futures=True)


def _measure_model(
    comparison: Comparison,
    out: Path,
    pair: tuple[str, float],
    numbers: Mapping[str, int],
    progress: Progress = lambda *_: None,
    on_cell: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Measure and write what ``out`` lacks of one (model, stress)."""
    wanted = [
        cell for cell in comparison.cells(*pair)
        if not (out / "cells" / f"{cell_name(cell)}.json").is_file()
    ]  # fmt: skip
    goal = comparison.inspected
    look = out / "inspection" / f"{inspection_name(*pair, goal and goal.name)}.json"
    to_inspect = goal is not None and not look.is_file()
    progress("cells", _done(out, numbers), len(numbers))
    if not wanted and not to_inspect:
        return
    model = load_model(pair[0], stress=pair[1])
    shared = _calibrator(comparison, model, progress)
    if to_inspect:
        inspected = load_model(pair[0], stress=pair[1])  # of its own: it is changed
        write_file(look, pretty_json(inspect_(inspected, goal, shared(0)[0], progress=progress)))
    start = time.perf_counter()
    for cell in _measure(comparison, model, wanted, shared, out, progress) if wanted else ():
        name, now = cell_name(cell), time.perf_counter()
        cell |= {"number": numbers[name], "cell_seconds": now - start}
        start = now
        write_file(out / "cells" / f"{name}.json", pretty_json(cell))
        progress("cells", _done(out, numbers), len(numbers))
        if on_cell:
            on_cell(cell)


def _calibrator(
    comparison: Comparison, model: ARVGModel, progress: Progress
) -> Callable[[int], Shared]:
    """Calibration seed -> what all methods share; that of the last one is kept."""

    @functools.lru_cache(maxsize=1)
    def shared(seed: int) -> Shared:
        return calibrate(model, comparison.samples, comparison.keep, seed, comparison.select,
                         progress=progress), Collected()  # fmt: skip

    return shared


def _measure(
    comparison: Comparison,
    model: ARVGModel,
    wanted: Sequence[dict[str, Any]],
    shared: Callable[[int], Shared],
    out: Path,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """The measured ``wanted`` cells of one model, one after the other."""
    labels = torch.arange(comparison.images) % model.num_classes
    ids, pictures, seconds = draw_images(model, labels, EVALUATION_SEED, progress, "draw")
    yardstick = Yardstick.of(model, labels, ids, comparison.compared, seed=0)
    for cell in wanted:
        if cell["method"] == FLOAT:
            if cell["seed"]:
                seed = EVALUATION_SEED + cell["seed"]
                _, pictures, seconds = draw_images(model, labels, seed, progress, "draw")
            found = yardstick.measure(model, pictures, progress)
        else:
            found, pictures, seconds = _quantized(cell, shared(cell["seed"]), yardstick, progress)
        if pictures is not None and cell["seed"] == 0:
            _keep_images(out, cell, pictures)
        yield cell | found | {"seconds_per_image": seconds}


def _quantized(
    cell: Mapping[str, Any], shared: Shared, yardstick: Yardstick, progress: Progress
) -> tuple[dict[str, Any], torch.Tensor | None, float | None]:
    """(figures, images, seconds per image) of one quantization."""
    method, (rows, collected) = parse_method(cell["method"]), shared
    model: ARVGModel = load_model(cell["model"], stress=cell["stress"])
    start = time.perf_counter()
    try:
        report = quantize_(model, method=method, calibration=rows, pack=method.integer,
                           progress=progress, collected=collected,
                           **parse_goal(cell["scheme"]).arguments)  # fmt: skip
    except ValueError as error:
        return {"refused": str(error)}, None, None
    spent = time.perf_counter() - start
    pictures = seconds = None
    if cell["seed"] == 0:
        _, pictures, seconds = draw_images(model, yardstick.labels, EVALUATION_SEED, progress,
                                           "draw")  # fmt: skip
    figures = {
        "integer": method.integer,
        "mean_bits": report.mean_bits,
        "sqnr_db": report.sqnr_db,
        "worst_sqnr_db": report.worst.sqnr_db,
        "worst_layer": report.worst.name,
        "quantize_seconds": spent,
    }
    figures |= yardstick.measure(model, pictures, progress)
    figures["layers"] = {layer.name: layer.sqnr_db for layer in report.layers}
    figures["transforms"] = {layer.name: layer.transform for layer in report.layers}
    if report.allocation:
        figures |= {key: report.allocation[key] for key in ("target_bits", "schemes")}
    return figures, pictures, seconds


def _keep_images(out: Path, cell: Mapping[str, Any], images: torch.Tensor) -> None:
    """The first images side by side in one PNG, pixel for pixel."""
    from .report import save_png, to_picture

    strip = torch.cat(list(images[:SHOWN]), 2)  # [n, 3, H, W] -> [3, H, n W]
    save_png(to_picture(strip), out / "images" / f"{cell_name(cell)}.png")


def all_methods() -> tuple[str, ...]:
    """Every registered method, round to nearest first and the package's own last."""
    names = sorted(METHODS, key=lambda n: (n == "ptq4arvg", n != "rtn", n))
    return tuple(names)
