"""What a budget of bits buys: one row per scheme and budget, and estimates beside the truth."""

import pytest

from bench import mixed


@pytest.fixture(scope="module")
def case():
    return mixed.Case("par-tiny", samples=4, keep=4)


def test_a_row_per_scheme_and_budget(case, monkeypatch):
    monkeypatch.setattr(mixed, "METHOD", "rtn")
    monkeypatch.setattr(mixed, "TARGETS", (4.0, 5.0))
    rows = list(mixed.budgets(case, 0))
    assert [row["variant"] for row in rows] == [*mixed.SCHEMES, "4 bits", "5 bits"]
    assert all(set(row) <= set(mixed.COLUMNS) for row in rows)
    linears = len(case.model.linears())
    assert all(sum(row[scheme] for scheme in mixed.SCHEMES) == linears for row in rows)
    four, five = rows[-2:]
    assert four["kl"] == rows[-3]["kl"] and four["W4A8"] == linears
    assert 4.5 < five["mean_bits"] <= 5 and five["kl"] < four["kl"]
    assert five["predicted"] < four["predicted"]


def test_estimates_stand_beside_the_truth(case, monkeypatch):
    monkeypatch.setattr(mixed, "METHOD", "rtn")
    rows = mixed.alone(case, 0)
    row = next(rows)
    rows.close()
    assert set(row) <= set(mixed.ALONE_COLUMNS)
    assert row["linear"] == case.model.linears()[0].name and 0.1 < row["estimate"] / row["kl"] < 10


def test_rank_correlation():
    rows = [{"estimate": e, "kl": None, "relative_error": t} for e, t in ((1, 2), (2, 9), (3, 5))]
    assert mixed.rank_correlation(rows) == pytest.approx(0.5)
    rows = [{"estimate": e, "kl": -e, "relative_error": 0} for e in (1, 5, 3)]
    assert mixed.rank_correlation(rows) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds 0; wanted 1 or more"),
        (["--models", "var-tine"], "Closest: 'var-tiny'"),
        (["--models", "var-d16"], "unknown 'var-d16'"),
        (["--models", ""], "--models is empty; wanted some of "),
        (["--samples", "3"], "samples 3, keep 32"),
        (["--out", "."], ". is a folder; wanted the name of a file"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert mixed.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
