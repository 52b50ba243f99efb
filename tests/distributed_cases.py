"""What the processes of test_distributed.py do. They are forked from a server that has imported
this, so that torch is imported once for all of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

import ptq4arvg
from ptq4arvg.checkpoint import content_hash
from ptq4arvg.cli import main
from ptq4arvg.distributed import RankError, current, joined
from ptq4arvg.evaluation import run
from ptq4arvg.evaluation.drawing import Drawing
from ptq4arvg.evaluation.protocol import find_protocol
from ptq4arvg.evaluation.spaces import bundled_reference, bundled_space
from ptq4arvg.models.registry import build_model
from ptq4arvg.serialize import pretty_json
from ptq4arvg.statistics import collect_histograms, collect_inputs, collect_ranges
from ptq4arvg.token_scales import position_groups, step_ranges
from tests.models.tiny import TINY

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "tests.distributed_cases"])  # the slow imports
PROTOCOL = find_protocol("smoke").with_(images=7, compared=3)
LIMIT = 120  # seconds


def launch(world: int, task: Callable[..., None], *arguments: object) -> list[int]:
    """Run ``task(*arguments)`` in ``world`` processes as torchrun would; returns their exit codes,
    -9 for one that was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [CONTEXT.Process(target=_process, args=(rank, world, port, task, arguments))
             for rank in range(world)]  # fmt: skip
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(LIMIT)
    alive = [process for process in ranks if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive, f"{len(alive)} of {world} processes did not end within {LIMIT} s"
    return [process.exitcode for process in ranks]


def _process(rank: int, world: int, port: int, task: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(port)}  # fmt: skip
    run.BUNDLED = ("var", "mar")  # whose pictures the bundled reference is taken to be of
    try:
        task(*arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def small(family: str) -> ptq4arvg.ARVGModel:
    return build_model(family, TINY[family], seed=0)


def quantize_and_evaluate(out: Path, family: str) -> None:
    """Calibrate, quantize, save and evaluate; one rank owns no batch of the replayed rows."""
    with joined() as group:
        model = small(family)
        rows = ptq4arvg.calibrate(model, samples=8, keep=6, seed=1, batch_size=1)
        statistics = statistics_hash(model, rows)
        ptq4arvg.quantize_(model, "W6A6", "ptq4arvg", rows, batch_size=2)
        found = {"rows": rows.hash, "statistics": statistics,
                 "hash": ptq4arvg.save_quantized(model, out / f"q{group.rank}")}  # fmt: skip
        _evaluate(out, model, small(family))
        (out / f"found{group.rank}.json").write_text(json.dumps(found))


def statistics_hash(model: ptq4arvg.ARVGModel, rows: ptq4arvg.Calibration) -> str:
    """Of all that is collected: a quantized checkpoint would not show every last bit of it."""
    steps = {spec.name: position_groups(spec, "step") for spec in model.linears()}
    visits = {name: model.visits(name) for name in steps}
    stats = collect_inputs(model, rows, steps, visits, sample=16, batch_size=2)
    generator = torch.Generator().manual_seed(0)
    ranges = {name: (*step_ranges(s), torch.rand(s.lo.shape[1], generator=generator))
              for name, s in stats.items()}  # fmt: skip
    found = collect_histograms(model, rows, ranges, 64, batch_size=2)
    for name, s in stats.items():
        found |= {f"{name} {key}": getattr(s, key) for key in ("lo", "hi", "sample")}
        found[f"{name} position"] = s.sample_position
    turned = {name: (step, torch.neg) for name, step in steps.items()}
    for name, (lo, hi) in collect_ranges(model, rows, turned, batch_size=2).items():
        found |= {f"{name} turned lo": lo, f"{name} turned hi": hi}
    return content_hash({}, found)


def _evaluate(out: Path, model, reference, progress=None) -> None:
    result = run.evaluate(
        model, PROTOCOL, bundled_space(), bundled_reference(), reference, seed=3, resamples=4,
        samples=out / "s.npz", batch_size=2, progress=progress, parts=out / "parts",
    )  # fmt: skip
    assert (result is None) == (current().rank > 0)
    if result is not None:
        (out / "figures.json").write_text(pretty_json(result.figures))


def evaluate_float(out: Path, killed: int | None = None) -> None:
    """Evaluate a float model and write down what was drawn; rank ``killed`` dies after its first
    batch, and then the others write down what they are told."""
    drawn, draw = [], Drawing.images

    def images(self: Drawing, batch: torch.Tensor) -> torch.Tensor:
        if current().rank == killed and drawn:
            os.kill(os.getpid(), signal.SIGKILL)
        drawn.append([self.seed, *batch.tolist()])
        return draw(self, batch)

    Drawing.images = images
    rank = os.environ.get("RANK", "0")
    try:
        with joined():
            _evaluate(out, small("var"), None)
    except RankError as error:
        (out / f"told{rank}.txt").write_text(str(error))
    (out / f"drawn{rank}.json").write_text(json.dumps(drawn))


def fail_or_gather(out: Path) -> None:
    """Rank 1 fails while the others wait for it."""
    rank = int(os.environ["RANK"])
    try:
        with joined() as group:
            if rank == 1:
                raise ValueError("no such\nthing")
            group.gather({})
    except RankError as error:
        (out / f"told{rank}.txt").write_text(str(error))
    except ValueError:
        assert rank == 1


def use_collectives() -> None:
    """Tensors of several shapes and types, in turn, and sums."""
    with joined() as group:
        mine = {"a": torch.full((group.rank, 2), group.rank, dtype=torch.bfloat16)}
        if group.rank == 1:
            mine = {}
        parts = group.gather(mine)
        assert [set(part) for part in parts] == [{"a"}, set(), {"a"}, {"a"}]
        assert [len(part["a"]) for part in parts if part] == [0, 2, 3]
        assert parts[3]["a"].dtype == torch.bfloat16 and (parts[3]["a"] == 3).all()
        numbers = {n: torch.tensor([n]) for n in range(6) if group.owns(n)}
        assert torch.cat(group.gather_batches(numbers)).tolist() == list(range(6))
        total = torch.tensor([2.0**group.rank], dtype=torch.float64)
        assert group.sum_(total).item() == 15
    assert current().world == 1


def join_again() -> None:
    """Many entries one after another, one that fails among them, and one within another."""
    for number in range(8):
        try:
            with joined() as group:
                if number == 3 and group.rank == 1:
                    raise ValueError("no such thing")
                assert group.sum_(torch.ones(1)).item() == group.world
        except (RankError, ValueError):
            assert number == 3
    with joined() as outer:
        with joined() as inner:
            assert current() is inner
            assert inner.sum_(torch.ones(1)).item() == outer.world
        assert current() is outer
        assert outer.sum_(torch.ones(1)).item() == outer.world
    assert current().world == 1


def command(arguments: list[str], out: Path) -> None:
    """A command line; what it prints goes to a file per rank."""
    with open(out / f"printed{os.environ.get('RANK', '0')}.txt", "w") as file:
        sys.stdout = sys.stderr = file
        status = main(arguments)
    sys.exit(status)


if __name__ == "__main__":  # under torchrun, which starts anew after the kill
    run.BUNDLED = ("var", "mar")
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    evaluate_float(Path(sys.argv[1]), 1 if first else None)
