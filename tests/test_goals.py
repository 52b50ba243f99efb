"""Goals: schemes and budgets by name, and what cannot be one."""

import pytest

from ptq4arvg.goals import Goal, check_target, parse_goal, parse_goals
from ptq4arvg.numerics import SCHEMES


def test_a_scheme_is_a_goal():
    goal = parse_goal("w6a6")
    assert goal == Goal(SCHEMES["W6A6"]) and goal.name == "W6A6"
    assert goal.arguments == {"scheme": SCHEMES["W6A6"]} and goal.flag == "--scheme W6A6"


@pytest.mark.parametrize("text", ["5.5", "5.50", "5.5 bits", "5.5bits"])
def test_a_number_is_a_budget(text):
    goal = parse_goal(text)
    assert (goal.scheme, goal.target_bits, goal.name) == (None, 5.5, "5.5 bits")
    assert goal.arguments == {"target_bits": 5.5} and goal.flag == "--target-bits 5.5"


@pytest.mark.parametrize("text", ["4", "8.0", "5.123456789", "6 bits"])
def test_a_name_is_read_back_as_the_same_goal(text):
    assert parse_goal(parse_goal(text).name) == parse_goal(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["3.9"], r"target_bits is 3\.9; wanted 4 to 8, the mean bits"),
        (["W6A6", "9 bits"], "target_bits is 9; wanted 4 to 8"),
        (["nan"], "target_bits is nan; wanted"),
        (["W6A7"], "unknown scheme 'W6A7'.*Closest"),
        (["5,5"], "unknown scheme '5,5'"),
        (["5.5", "W6A6", "5.50"], "schemes 5.5 bits, W6A6, 5.5 bits: 5.5 bits is there twice"),
        (["W6A6", "w6a6"], "W6A6 is there twice; wanted it once"),
        ([], "no scheme; wanted some of W8A8"),
    ],
)
def test_what_is_no_goal_is_an_error(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_goals(texts)


def test_the_ends_are_budgets():
    assert [check_target(bits) for bits in (4, 8)] == [4.0, 8.0]
