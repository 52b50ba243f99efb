"""Progress displays: a line per tenth without a terminal, nothing when quiet."""

import io

import pytest

from ptq4arvg.progress import BarProgress, PlainProgress, SilentProgress, make_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(total, seconds_per_step):
    stream, now = io.StringIO(), [0.0]
    progress = PlainProgress(stream, clock=lambda: now[0])
    for done in range(1, total + 1):
        progress("fit", done, total)
        now[0] += seconds_per_step
    return stream.getvalue().splitlines()


def test_a_line_per_tenth_and_one_at_each_end():
    out = lines(200, 1.0)
    assert out[0] == "fit: 1/200 (0 %)"
    assert out[-1] == "fit: 200/200 (100 %)"
    assert len(out) == 11


@pytest.mark.parametrize("total", [1, 3, 8])
def test_few_steps_give_a_line_each(total):
    assert len(lines(total, 1.0)) == total


def test_time_left_follows_the_clock():
    """On an even clock the estimate is right from the second line on."""
    out = lines(100, 0.5)
    assert out[1] == "fit: 10/100 (10 %), about 45 s left"
    assert out[5] == "fit: 50/100 (50 %), about 25 s left"


def test_a_phase_that_begins_again_is_shown_again():
    stream = io.StringIO()
    progress = PlainProgress(stream)
    for _ in range(2):
        progress("sample", 1, 2)
        progress("sample", 2, 2)
    assert stream.getvalue().count("2/2") == 2


def test_prefix_names_what_the_phases_belong_to():
    stream = io.StringIO()
    progress = PlainProgress(stream)
    progress.within("W6A6")("fit", 1, 1)
    progress.within("")("fit", 1, 1)
    assert stream.getvalue().splitlines() == ["W6A6 fit: 1/1 (100 %)", "fit: 1/1 (100 %)"]


def test_the_display_follows_the_stream():
    assert isinstance(make_progress(stream=io.StringIO()), PlainProgress)
    assert isinstance(make_progress(stream=Terminal()), BarProgress)
    assert isinstance(make_progress(quiet=True, stream=Terminal()), SilentProgress)


def test_quiet_prints_nothing():
    stream = io.StringIO()
    with make_progress(quiet=True, stream=stream) as progress:
        progress("fit", 1, 2)
        progress.say("hello")
    assert stream.getvalue() == ""


def test_bars_survive_an_empty_phase_and_lines_in_between():
    stream = Terminal()
    with make_progress(stream=stream) as progress:
        progress("fit", 0, 0)
        progress.say("[kept] 3 of 4")
        progress("pack", 2, 2)
    assert "[kept] 3 of 4" in stream.getvalue()
