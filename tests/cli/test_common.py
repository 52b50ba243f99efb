"""Parsing shared by commands."""

import pytest

from ptq4arvg.cli.common import parse_classes, typed
from ptq4arvg.cli.quantize import _options, _pairs
from ptq4arvg.methods import get_method


def test_classes_are_numbers_and_ranges():
    assert parse_classes("3,7", 32) == [3, 7]
    assert parse_classes("0-2, 9,9", 32) == [0, 1, 2, 9, 9]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "not a class number"), ("a", "'a' is not"), ("3;4", "'3;4'"),
     ("32", "out of range; wanted 0 to 31"), ("5-3", "5-3 is out of range")],
)  # fmt: skip
def test_other_classes_are_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse_classes(text, 32)


def test_what_to_type_next_can_be_typed():
    assert typed("generate", "a b", classes="0-7", top_k=None, num_iter=2) == (
        "ptq4arvg generate 'a b' --classes 0-7 --num-iter 2"
    )


def test_pairs_split_at_the_last_sign():
    assert _pairs(["re:.*=x=W8A8"], "--override") == {"re:.*=x": "W8A8"}
    for bad in ("W8A8", "=W8A8", "head="):
        with pytest.raises(ValueError, match="wanted NAME=VALUE"):
            _pairs([bad], "--override")


def test_options_take_the_type_of_their_default():
    method = get_method("ptq4arvg")
    assert _options(["bias_correction=false"], method) == {"bias_correction": False}
    assert _options(["limit=4"], method) == {"limit": 4.0}
    assert _options(["alpha=null"], get_method("smoothquant")) == {"alpha": None}
    with pytest.raises(ValueError, match=r"wanted a float, like the default 16\.0"):
        _options(["limit=null"], method)
    with pytest.raises(ValueError, match="wanted a bool"):
        _options(["bias_correction=maybe"], method)
    with pytest.raises(ValueError, match=r"has no option 'limt'.*Closest: 'limit'"):
        method.with_options(**_options(["limt=4"], method))
