"""Interleaved timing, with a clock of its own: nothing here depends on the machine's speed."""

import itertools
import math

import pytest
import timing


class Machine:
    """Calls take the seconds they are made with, on a clock that only they advance."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def call(self, name, seconds):
        def run():
            self.now += seconds
            self.order.append(name)

        return run

    def measure(self, candidates, budget, **options):
        return timing.measure(candidates, budget, clock=lambda: self.now, **options)


def test_medians_and_ratios():
    machine = Machine()
    slow, fast = machine.call("slow", 0.4), machine.call("fast", 0.1)
    found = machine.measure({"slow": [slow], "fast": [fast]}, 5.0)
    assert found.quantile("slow") == pytest.approx(0.4)
    assert found.ratio("slow", "fast") == pytest.approx(4.0)
    assert found.repeats == 10


def test_candidates_take_turns():
    machine = Machine()
    machine.measure({n: [machine.call(n, 1.0)] for n in "ab"}, 0.0, min_repeats=3)
    assert machine.order[-6:] == list("ababab")


def test_copies_are_used_in_turn():
    machine = Machine()
    machine.measure({"a": [machine.call(i, 1.0) for i in range(3)]}, 0.0)
    assert all((b - a) % 3 == 1 for a, b in itertools.pairwise(machine.order))


def test_short_calls_are_timed_together():
    machine = Machine()
    found = machine.measure({"a": [machine.call("a", 1e-6)]}, 0.01, sample=1e-3)
    assert found.quantile("a") == pytest.approx(1e-6)
    assert len(machine.order) >= 1000 * found.repeats


def test_quiet_timings_are_preferred():
    seconds = {"a": [1.0, 9.0, 1.0, 1.0], "b": [2.0] * 4}
    quiet = {"a": [True, False, True, True], "b": [True] * 4}
    found = timing.Timings(seconds, quiet)
    assert found.quantile("a", 0.9) == 1.0
    assert found.ratio("b", "a", 0.1) == 2.0
    assert found.disturbed("a") == 0.25
    few = timing.Timings(seconds, {"a": [False, True, False, False], "b": [True] * 4})
    assert few.quantile("a", 1.0) == 9.0


def test_an_interrupt_passes():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        timing.measure({"a": [stop]}, 1.0)


def test_copies_exceed_the_cache():
    assert timing.cold_copies(100, 0) == 1
    assert timing.cold_copies(100, 1000) * 100 > 1000
    assert timing.last_level_cache() >= 1 << 20


def test_geometric_mean():
    assert timing.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert math.isnan(timing.geometric_mean([]))


def test_waiting_never_falls():
    with timing.Waiting() as waiting:
        first = waiting.read()
        assert waiting.read() >= first >= 0


def test_columns_of_a_row():
    timings = timing.Timings(
        {"a": [2e-3, 1e-3, 3e-3], "b": [4e-3] * 3}, {"a": [True] * 3, "b": [False] * 3}
    )
    assert timings.columns("a") == {
        "median_us": pytest.approx(2e3), "p10_us": pytest.approx(1.2e3),
        "p90_us": pytest.approx(2.8e3), "repeats": 3, "disturbed": 0.0,
    }  # fmt: skip
    assert timings.columns("b", "ms")["median_ms"] == pytest.approx(4)
    assert timings.columns("b")["disturbed"] == 1.0
    assert timings.ratios("peer", "b", "a") == {
        f"x_peer{part}": timings.ratio("b", "a", q)
        for part, q in (("", 0.5), ("_p10", 0.1), ("_p90", 0.9))
    }  # fmt: skip
