"""`ptq4arvg report`: one page of what `ptq4arvg compare` measured."""

from __future__ import annotations

from pathlib import Path

from .common import closing

__all__ = ["run"]


def run(folder: Path) -> None:
    """Write report.html into ``folder``."""
    from ..report_html import write_page

    path = write_page(folder)
    closing(str(path), f"{path.stat().st_size / 1e6:.2f} MB, needs no network",
            f"open {path} in a browser")  # fmt: skip
