"""`ptq4arvg demo`: run the demo, write the grid and the report, print the table."""

from __future__ import annotations

import time
from pathlib import Path

from ..progress import make_progress
from .common import closing, header, split

__all__ = ["run"]

NOTES = (
    "{compared}, float model against quantized model on the same {rows} sequences.",
    "Frechet distance in the bundled feature space, {images} images against the training images, "
    "with a 95 % bootstrap interval; it depends on the number of images.",
    "Weights: packed, in memory; float in half precision. ms/image: measured in this run on {isa} "
    "with {threads} threads.",
    "Stressed: the same function with outlier channels, as large published models have them.",
)


def run(
    model: str, out: Path, seed: int, images: int, stressed: bool, schemes: str, quiet: bool
) -> None:
    """Write grid.png and report.json to ``out`` and print the table.

    schemes: comma-separated, with budgets such as 5.5 among them.
    """
    header(f"demo: the bundled model {model} on this machine's CPU", seed, quiet)
    start = time.perf_counter()
    with make_progress(quiet) as progress:
        progress.say("loading torch and the operators")
        import torch

        from ..demo import COMPARED, closeness, demo_runs, headline, run_demo
        from ..goals import parse_goal
        from ..report import draw_grid, rich_table, save_png, write_report
        from ..serialize import check_writable

        runs = demo_runs(split(schemes))
        check_writable(out)

        def tell(row: dict) -> None:
            name = "float" if row["method"] == "float" else f"{row['scheme']} by {row['method']}"
            kind = f"stressed {row['stress']:g}" if row["stress"] else "plain"
            progress.say(f"{time.perf_counter() - start:5.1f} s   {kind}: {name} done")

        demo = run_demo(model, seed, images, stressed, progress, tell, runs)
    figure, short, _ = closeness(demo.report["rows"][0])
    nats = " in nats" if short == "KL" else ""
    footnote = (
        f"Same seeds in every row. {short}: {figure}{nats}, against the float model. "
        "MB: weights of the linear layers."
    )
    save_png(draw_grid(demo.blocks, demo.columns, footnote=footnote), out / "grid.png")
    write_report(out / "report.json", demo.report)

    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    console.print(rich_table(demo.report["rows"]))
    compared = "KL and top-1: next token" if short == "KL" else f"Error: {figure}"
    facts = {"compared": compared, "rows": 2 * min(images, COMPARED), "images": images,
             "isa": demo.report["isa"], "threads": torch.get_num_threads()}  # fmt: skip
    for note in NOTES if stressed else NOTES[:-1]:
        print(note.format(**facts))
    print(f"{time.perf_counter() - start:.0f} s in all.\n")
    closing(
        f"{out / 'grid.png'} and {out / 'report.json'}",
        headline(demo.report),
        f"ptq4arvg quantize {model} {parse_goal(runs[-1][1]).flag} --out out",
    )
