"""bench/steps.py: rows of what worked, notes of what did not, an interrupt."""

import pytest
from device import Device
from steps import take_steps


class Display:
    def __init__(self):
        self.phases, self.said = [], []

    def __call__(self, phase, done, total):
        self.phases.append((phase, done, total))

    def say(self, text):
        self.said.append(text)


def take(measured, steps=(1, 2, 3)):
    display, rows = Display(), []
    status = take_steps(steps, measured, lambda step: {"op": "gemm", "M": step, "layer": ""}, rows,
                        {"date": "today"}, display, "cpu")  # fmt: skip
    return status, rows, display


def test_every_step_gives_rows():
    status, rows, display = take(lambda step, tick: [{"M": step}, {"M": -step}])
    assert status == 0 and display.said == []
    assert rows == [{"date": "today", "M": m} for m in (1, -1, 2, -2, 3, -3)]
    assert display.phases == [*(("gemm", done, 3) for done in range(3)), ("measure", 3, 3)]


def failing(error):
    def measured(step, tick):
        yield {"M": step}
        if step == 2:
            raise error

    return measured


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("no such size\nand more"), "no such size"), (KeyError(), "KeyError")],
)
def test_a_step_that_fails_has_a_note_and_costs_no_other(error, reason):
    status, rows, display = take(failing(error))
    assert status == 1 and [row["M"] for row in rows] == [1, 2, 2, 3]
    assert rows[2] == {"date": "today", "op": "gemm", "M": 2, "layer": "", "candidate": "none",
                       "note": f"failed: {reason}"}  # fmt: skip
    assert display.said == [f"failed: op gemm, M 2: {reason}"]


def test_a_device_that_is_gone_ends_the_run(monkeypatch):
    monkeypatch.setattr(Device, "answers", lambda self: False)
    status, rows, display = take(failing(RuntimeError("illegal access")))
    assert status == 1 and [row["M"] for row in rows] == [1, 2, 2]
    assert display.said[-1] == "cpu no longer answers; this is what was measured until then"


def test_an_interrupt_ends_it_with_what_there_is():
    status, rows, display = take(failing(KeyboardInterrupt()))
    assert status == 130 and [row["M"] for row in rows] == [1, 2]
    assert display.said == ["interrupted; this is what was measured until then"]
