"""The nearest names that an error about an unknown name offers."""

import pytest

from ptq4arvg.errors import closest, nearest

LAYERS = [
    "blocks.0.attn.mat_qkv",
    "blocks.0.attn.proj",
    "blocks.0.ffn.fc1",
    "head",
    "head_nm.ada_lin",
]


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("heda", "head"),
        ("mat_qvk", "blocks.0.attn.mat_qkv"),
        ("blocks.0.atn.proj", "blocks.0.attn.proj"),
        ("HEAD", "head"),
        ("fc1", "blocks.0.ffn.fc1"),
    ],
)
def test_best_match_comes_first(name, best):
    assert nearest(name, LAYERS)[0] == best


def test_text():
    assert (
        closest("head_nm", ["head", "head_nm.ada_lin", "x"]) == "Closest: 'head_nm.ada_lin', 'head'"
    )


def test_always_offers_something():
    assert closest("zzz", ["W8A8", "W6A6"]) == "Closest: 'W8A8'"
    assert closest("", ["gps"]) == "Closest: 'gps'"


def test_no_candidates():
    assert closest("gps", []) == "There are none to choose from"


def test_at_most_count_without_repeats():
    assert len(nearest("blocks.0", [f"blocks.0.fc{i % 5}" for i in range(20)], count=3)) == 3
    assert nearest("gps", ["gps", "gps"]) == ["gps"]
