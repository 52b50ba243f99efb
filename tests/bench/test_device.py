"""bench/device.py: seconds per call, whatever is captured together; a device that is gone."""

import pytest
from device import LEAST_LAUNCHES, Device


class Gpu(Device):
    """Stands in for one: what it captures takes turns as a graph would."""

    cuda = True

    def capture(self, calls):
        return lambda: [call() for call in calls]

    def synchronize(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    """A clock that only what is called moves on."""
    import device

    now, real = [0.0], device.measure

    def pass_by(seconds):
        now[0] += seconds

    monkeypatch.setattr(
        device, "measure", lambda *args, **options: real(*args, **options, clock=lambda: now[0])
    )
    return pass_by


@pytest.mark.parametrize("kind", [Device, Gpu])
def test_times_are_of_calls_not_of_graphs(kind, clock):
    """Weights of other sizes make other numbers of launches in a graph."""
    calls = {"slow": [lambda: clock(3e-3)] * 2, "fast": [lambda: clock(1e-3)] * 5}
    timings = kind("any").time(calls, 0.1)
    assert timings.quantile("slow") == pytest.approx(3e-3)
    assert timings.quantile("fast") == pytest.approx(1e-3)
    assert timings.ratio("slow", "fast") == pytest.approx(3)


@pytest.mark.parametrize("count", [1, 3, LEAST_LAUNCHES, LEAST_LAUNCHES + 1])
def test_a_graph_has_enough_launches_of_every_copy_alike(count):
    calls = [lambda: None for _ in range(count)]
    repeated = Gpu("cuda").repeated(calls)
    assert len(repeated) >= LEAST_LAUNCHES and len({repeated.count(call) for call in calls}) == 1
    assert Device("cpu").repeated(calls) == calls


def test_one_call_for_many():
    seen = []
    Device("cpu").capture([lambda: seen.append(1), lambda: seen.append(2)])()
    assert seen == [1, 2]


def test_a_processor_has_no_second_level_cache_to_avoid_and_always_answers():
    assert Device("cpu").l2_bytes() == 0 and Device("cpu").answers()


def test_a_device_that_is_gone(monkeypatch):
    def lost(self):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(Gpu, "synchronize", lost)
    assert not Gpu("cuda").answers()
