"""One self-contained HTML page of a comparison's folder. Reads files only: needs no torch."""

from .page import make_page, write_page

__all__ = ["make_page", "write_page"]
