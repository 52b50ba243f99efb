"""Tables of a summary: the best is marked, refused and simulated rows are told apart."""

import csv
import io

import pytest

from ptq4arvg.tables import (
    csv_table,
    latex_table,
    markdown_pivot,
    pivot,
    scheme_title,
    significant,
    terminal_tables,
)


def row(method, closeness, model="var-tiny", stress=0.0, **changes):
    return {
        "model": model, "stress": stress, "scheme": "W6A6", "method": method, "seeds": 2,
        "figure": "kl", "closeness": closeness, "closeness_range": [closeness, closeness],
        "fd": 9.0, "fd_range": [8.5, 9.5], "fd_interval": [7.0, 11.0], "sqnr_db": 30.0,
        "weight_bytes": 1000, "integer": True, "seconds_per_image": 0.01,
    } | changes  # fmt: skip


ROWS = [
    row("rtn", 0.07), row("os_plus", 0.0301, integer=False), row("ptq4arvg", 0.0299),
    row("rtn", 3.7, stress=30.0), row("ptq4arvg", 0.028, stress=30.0),
    {"model": "var-tiny", "stress": 30.0, "scheme": "W6A6", "method": "os_plus", "seeds": 1,
     "refused": "no Hadamard matrix"},
]  # fmt: skip


def test_the_best_of_every_model_is_marked_and_ties_after_rounding_are_ties():
    models, lines = pivot(ROWS, "W6A6")
    assert models == ["var-tiny", "var-tiny, stressed 30"]
    assert lines == [
        ("rtn", ["0.070", "3.7"], [False, False]),
        ("os_plus", ["0.030*", "-"], [True, False]),
        ("ptq4arvg", ["0.030", "0.028"], [True, True]),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.02, "0.020"), (0.0699, "0.070"), (4.0, "4.0"), (12.3, "12"), (6.1e-5, "6.1e-05")],
)
def test_two_digits_are_two_digits(value, text):
    assert significant(value) == text
    assert float(significant(value, 3)) == value


def test_a_simulated_method_takes_no_first_place_from_those_that_run():
    rows = [
        row("rtn", 0.07), row("quarot", 0.04, integer=False), row("svdquant", 0.01, integer=False),
        row("ptq4arvg", 0.03),
    ]  # fmt: skip
    assert [first for *_, first in pivot(rows, "W6A6")[1]] == [[False], [False], [True], [True]]
    only = [row("svdquant", 0.01, integer=False)]
    assert pivot(only, "W6A6")[1] == [("svdquant", ["0.010*"], [True])]


def test_markdown_and_latex_hold_the_cells():
    lines = markdown_pivot(ROWS, "W6A6").splitlines()
    assert lines[0] == "| W6A6 | var-tiny | var-tiny, stressed 30 |"
    assert lines[3:] == ["| os_plus | **0.030*** | - |", "| ptq4arvg | **0.030** | **0.028** |"]
    tex = latex_table(ROWS)
    assert r"W6A6 & os\_plus & \textbf{0.030$^*$} & - \\" in tex
    assert tex.count(r"\midrule") == 1
    exact = row("50%", 0.0, scheme="float", integer=None)
    assert latex_table([*ROWS, exact]) == tex
    assert r"W6A6 & 50\% & \textbf{0} \\" in latex_table([exact | {"scheme": "W6A6"}])


def test_csv_has_every_figure():
    rows = [*csv.DictReader(io.StringIO(csv_table(ROWS)))]
    assert len(rows) == 6
    assert (rows[0]["fd_low"], rows[0]["fd_interval_high"], rows[0]["closeness_low"]) == (
        "8.5", "11.0", "0.07",
    )  # fmt: skip
    assert rows[5]["refused"] == "no Hadamard matrix" and rows[5]["closeness"] == ""


def test_the_terminal_shows_distances_below():
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=100)
    for table in terminal_tables(ROWS):
        console.print(table)
    assert "9.0 (7.0 to 11.0)" in out.getvalue() and "stressed 30" in out.getvalue()
    distance = "\n[dim]9.0 (7.0 to 11.0)[/dim]"
    assert [*table.columns[1].cells] == [
        f"0.070{distance}", f"[bold]0.030*[/bold]{distance}", f"[bold]0.030[/bold]{distance}",
    ]  # fmt: skip


def budget(method, closeness, mean_bits, **changes):
    return row(method, closeness, scheme="5.5 bits", target_bits=5.5, mean_bits=mean_bits,
               **changes)  # fmt: skip


BUDGETS = [row("rtn", 0.07, mean_bits=6.0), budget("rtn", 0.03, 5.4321), budget("gps", 0.02, 5.5)]


def test_a_budget_is_shown_with_the_bits_that_were_reached():
    title = "5.5 bits (reached 5.43 to 5.50)"
    assert scheme_title(BUDGETS, "5.5 bits") == scheme_title(BUDGETS[::-1], "5.5 bits") == title
    assert scheme_title(BUDGETS[:2], "5.5 bits") == "5.5 bits (reached 5.43)"
    assert scheme_title(BUDGETS, "W6A6") == "W6A6"
    assert markdown_pivot(BUDGETS, "5.5 bits").splitlines()[0] == f"| {title} | var-tiny |"
    tex = latex_table(BUDGETS).splitlines()
    at = tex.index(rf"\multicolumn{{3}}{{l}}{{{title}}} \\")
    assert tex[at + 2] == r"5.5 bits & gps & \textbf{0.020} \\" and len(tex) == 11
    assert [table.title for table in terminal_tables(BUDGETS)] == ["W6A6", title]
    rows = [*csv.DictReader(io.StringIO(csv_table(BUDGETS)))]
    assert [r["target_bits"] for r in rows] == ["", "5.5", "5.5"]
    assert [r["mean_bits"] for r in rows] == ["6.0", "5.4321", "5.5"]


def test_without_rows_there_is_no_best():
    assert pivot([], "W6A6") == ([], [])
    with pytest.raises(KeyError):
        pivot([{"scheme": "W6A6"}], "W6A6")
