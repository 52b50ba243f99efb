"""Values that the benchmarks share: lists of names and numbers, each once, and least values."""

import pytest
from options import at_least, choices, numbers


def test_each_name_and_number_once():
    assert choices("--x", "b, a,b,,a", ("a", "b")) == ["b", "a"]
    assert choices("--x", " , ", ("a",)) == []
    assert numbers("--n", "8,1,8", "1,8") == [8, 1]
    with pytest.raises(ValueError, match=r"--x: unknown 'abd'; known are abc\. Closest: 'abc'"):
        choices("--x", "abd", ("abc",))


def test_least_values():
    at_least("--seeds", 1, 1)
    with pytest.raises(ValueError, match=r"^--seeds 0; wanted 1 or more$"):
        at_least("--seeds", 0, 1)
