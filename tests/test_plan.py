"""Patterns, overrides and their errors."""

from types import SimpleNamespace

import pytest

from ptq4arvg.plan import make_plan, match

NAMES = ["blocks.0.attn.mat_qkv", "blocks.0.ffn.fc2", "blocks.1.ffn.fc2", "head"]
SPECS = [SimpleNamespace(name=name) for name in NAMES]


def schemes(**kwargs):
    return {p.name: p.scheme and p.scheme.name for p in make_plan(SPECS, "W6A6", **kwargs)}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("head", {"head"}),
        ("blocks.*.ffn.fc2", {"blocks.0.ffn.fc2", "blocks.1.ffn.fc2"}),
        (r"re:.*fc2$", {"blocks.0.ffn.fc2", "blocks.1.ffn.fc2"}),
        (r"re:blocks\.0\.", {"blocks.0.attn.mat_qkv", "blocks.0.ffn.fc2"}),
    ],
    ids=["exact", "shell", "expression", "expression from the start"],
)
def test_pattern_selects(pattern, found):
    assert match(pattern, NAMES) == found


@pytest.mark.parametrize("pattern", ["hed", "hea", "re:.*hed$", "re:ffn", "blocks.*.fc2x"])
def test_pattern_that_selects_nothing_names_the_closest(pattern):
    with pytest.raises(ValueError, match=r"matched 0 of 4 layers.*Closest: "):
        match(pattern, NAMES)


def test_bad_expression_is_an_error():
    with pytest.raises(ValueError, match="not a regular expression"):
        match("re:(", NAMES)


def test_ignore_wins_over_overrides_and_later_overrides_win():
    plan = schemes(ignore=["head"], overrides={"*": "W8A8", "re:.*fc2$": "W4A8", "head": "W8A8"})
    assert plan == {NAMES[0]: "W8A8", NAMES[1]: "W4A8", NAMES[2]: "W4A8", "head": None}


def test_a_single_ignore_pattern_may_be_a_string():
    assert schemes(ignore="head")["head"] is None


def test_linears_may_come_one_by_one():
    assert [p.spec for p in make_plan(iter(SPECS), "W8A8")] == SPECS
