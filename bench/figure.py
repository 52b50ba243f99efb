"""The figure of ratios against M. Needs matplotlib, an optional dependency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timing import geometric_mean

__all__ = ["draw", "need_matplotlib"]

COLORS = ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2")  # a peer each
STYLES = {8: ("-", "o"), 6: ("--", "s"), 4: (":", "^")}  # bits -> line, marker


def need_matplotlib() -> None:
    """ImportError that says what to install, before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(
            "--figure needs matplotlib: pip install matplotlib (or `pip install '.[report]'`)"
        ) from None


def draw(rows: list[dict[str, Any]], peers: list[str], path: Path) -> None:
    """Write a PNG: a line per peer and bits, of our fused operator with float output."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    ours = [r for r in rows if r.get("bits") and r["candidate"].startswith("gemm.")]
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    axes.axhline(1, color="#888", linewidth=0.8)
    for color, peer in zip(COLORS, peers, strict=False):
        for bits, (line, marker) in STYLES.items():
            found = [r for r in ours if r["bits"] == bits and r.get(f"x_{peer}")]
            m = sorted({row["M"] for row in found})
            means = [geometric_mean(r[f"x_{peer}"] for r in found if r["M"] == x) for x in m]
            if m:
                axes.plot(m, means, line, marker=marker, color=color, markersize=4,
                          label=f"{bits} bits / {peer}")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(sorted({row["M"] for row in ours}))
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("rows M")
    axes.set_ylabel("times faster (geometric mean)")
    shapes = ", ".join(dict.fromkeys(row["shape"] for row in ours))
    first = ours[0]
    axes.set_title(f"{shapes} on {first['device']}, {first['threads']} threads, {first['isa']}",
                   fontsize=10, loc="left")  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#ddd", linewidth=0.6)
    axes.legend(fontsize=7, frameon=False, ncols=1, bbox_to_anchor=(1.01, 1), loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
