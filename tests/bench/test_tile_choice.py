"""From times to a table: every size has one kernel, and none is far from the best measured."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_choice import Point, choose, to_rows
from tile_table import ANY, DIMENSIONS, MEASURED

KERNELS = ("decode", "tile64", "tile128")
SIZES = st.tuples(
    st.sampled_from([1, 8, 32, 64, 512]), st.sampled_from([768, 3072, 4096]),
    st.sampled_from([768, 1024]), st.sampled_from([4, 6, 8]), st.sampled_from([1, 4]),
)  # fmt: skip
SECONDS = st.floats(1e-6, 1e-3)
# tile128 takes everything; the others may be missing.
TIMES = st.fixed_dictionaries({"tile128": SECONDS}, optional={"decode": SECONDS, "tile64": SECONDS})
POINTS = st.dictionaries(SIZES, TIMES, min_size=1, max_size=40).map(
    lambda found: [Point(*size, times) for size, times in found.items()]
)


def owners(boxes, size):
    return [
        box for box in boxes
        if all(low <= x <= high for x, (low, high) in
               zip(size, (box.ranges[name] for name in DIMENSIONS), strict=True))
    ]  # fmt: skip


def size_of(point):
    return tuple(getattr(point, name) for name in DIMENSIONS)


@settings(max_examples=60, deadline=None)
@given(POINTS, st.sampled_from([0.0, 0.03, 0.5]))
def test_the_loss_is_bounded_at_every_measured_size(points, tolerance):
    boxes = choose(points, tolerance)
    assert sum(box.points for box in boxes) == len(points)
    for point in points:
        (box,) = owners(boxes, size_of(point))
        loss = point.seconds[box.kernel] / min(point.seconds.values()) - 1
        assert loss <= tolerance + 1e-12 and loss <= box.loss + 1e-12


@settings(max_examples=60, deadline=None)
@given(POINTS, st.tuples(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 10**9)))
def test_every_size_lies_in_one_box(points, size):
    bits = {point.bits for point in points}
    outputs = {point.out_bytes for point in points}
    boxes = choose(points, 0.1)
    for b in range(min(bits), max(bits) + 1):
        for out in {1: (1,), 4: (2, 4)}[max(outputs)]:
            assert len(owners(boxes, (*size, b, out))) == 1
    for corner in (1, ANY):
        assert len(owners(boxes, (corner, corner, corner, max(bits), max(outputs)))) == 1


@settings(max_examples=60, deadline=None)
@given(POINTS)
def test_without_tolerance_the_fastest_is_chosen(points):
    boxes = choose(points, 0.0)
    for point in points:
        (box,) = owners(boxes, size_of(point))
        assert point.seconds[box.kernel] == min(point.seconds.values())
        assert box.loss == 0.0


def grid(time):
    """Points over M, N and bits, with the times that ``time`` gives."""
    return [
        Point(m, n, 1024, bits, 4, time(m, n, bits))
        for m in (8, 32, 64, 512) for n in (1024, 4096) for bits in (8, 4)
    ]  # fmt: skip


def test_neighbours_with_the_same_winner_are_one_row():
    points = grid(lambda m, n, bits: {"decode": 1.0 if m <= 32 else 3.0, "tile64": 2.0})
    small, large = choose(points, 0.0)
    assert small.kernel == "decode" and small.ranges["m"] == (1, 32) and small.points == 8
    assert large.kernel == "tile64" and large.ranges["m"] == (33, ANY)
    assert small.lead == pytest.approx(2.0) and large.lead == pytest.approx(1.5)
    assert small.ranges["bits"] == (4, 8) and small.ranges["out_bytes"] == (2, 4)


def test_the_tolerance_joins_what_is_nearly_as_good():
    points = grid(lambda m, n, bits: {"a": 1.0, "b": 1.02 if bits == 8 else 0.99})
    assert {box.kernel for box in choose(points, 0.0)} == {"a", "b"}
    (box,) = choose(points, 0.03)
    assert (box.kernel, box.points) == ("a", 16)  # faster over all of them together
    assert box.loss == pytest.approx(1 / 0.99 - 1)


def test_boxes_apart_in_the_tree_are_joined():
    """The first cut is in M; the same cut in N below both halves leaves neighbours to join."""

    def time(m, n, bits):
        if n == 4096:
            return {"wide": 1.0, "low": 9.0, "high": 9.0}
        return {"wide": 9.0, "low": 1.0 if m <= 32 else 9.0, "high": 9.0 if m <= 32 else 1.0}

    boxes = choose(grid(time), 0.0)
    assert sorted(box.kernel for box in boxes) == ["high", "low", "wide"]


def test_reasons_say_what_was_measured():
    points = grid(
        lambda m, n, bits: {"decode": 1.0, "tile64": 1.31} if m <= 32 else {"tile64": 1.0}
    )
    rows = to_rows(choose(points, 0.0), 90, "H100, 2026-01-02, abc")
    assert [row.sm for row in rows] == [(90, 90)] * 2
    assert rows[0].reason == (
        f"{MEASURED}1.31x the next, 0.0% behind the best at most, 8 sizes, H100, 2026-01-02, abc"
    )
    assert "the only one that runs" in rows[1].reason
    assert math.isnan(choose(points, 0.0)[1].lead)


@pytest.mark.parametrize(
    ("points", "tolerance", "message"),
    [
        ([], 0.1, "0 points"),
        ([Point(1, 1, 1, 8, 4, {"a": 1.0})], -1.0, "tolerance -1.0"),
        ([Point(1, 1, 1, 8, 4, {})], 0.0, "a time at each"),
        ([Point(1, 1, 1, 8, 4, {"a": 1.0}), Point(1, 1, 1, 8, 4, {"b": 1.0})], 0.0, "same size"),
    ],
)
def test_bad_input_is_an_error(points, tolerance, message):
    with pytest.raises(ValueError, match=message):
        choose(points, tolerance)
