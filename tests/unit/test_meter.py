"""The rates of a run, by a clock of the test's own."""

from __future__ import annotations

import pytest

from batchgen.meter import Meter
from batchgen.progress import Progress


def test_a_run_of_short_rows_is_measured_over_the_last_quarter_of_a_minute():
    meter = Meter()
    for second in range(100):
        meter.add(float(second), 10 * min(second, 50), 1000 * min(second, 50))
        if second == 50:
            assert meter.rates() == (10.0, 1000.0)
        assert len(meter.samples) <= 17 or second > 50
    assert meter.rates() == (pytest.approx(50 / 54), pytest.approx(5000 / 54)), "since the last 50 rows"


def test_rows_that_take_minutes_have_a_rate_between_their_ends_too():
    meter = Meter()
    for second in range(7200):
        meter.add(float(second), second // 600 * 8, second // 600 * 8 * 2000)
        if second > 3600:
            assert meter.rates()[0] == pytest.approx(8 / 600, rel=0.4)
    assert len(meter.samples) <= 1803, "half an hour is enough"


def test_nothing_has_no_rate_and_what_is_lost_no_negative_one():
    meter = Meter()
    meter.add(0.0, 5, 50)
    assert meter.rates() == (0.0, 0.0)
    meter.add(1.0, 3, 20)
    assert meter.rates() == (0.0, 0.0)
    meter.clear()
    meter.add(9.0, 3, 20)
    meter.add(10.0, 4, 40)
    assert meter.rates() == (1.0, 20.0)


def test_what_is_left_is_told_by_the_tokens_that_rows_take():
    """1,000 rows of 50 to 149 tokens, 100 at once at ten tokens a second each: by rows nothing is known for long."""
    meter, told = Meter(), dict[int, float | None]()
    waiting = [50 + 37 * number % 100 for number in range(1000)]
    at_work, ended, tokens, second = list[tuple[int, int]](), list[int](), 0, 0
    while waiting or at_work:
        meter.add(float(second), len(ended), tokens)
        told[second] = meter.seconds_left(1000, Progress(ok=len(ended), output_tokens=tokens, ended_tokens=sum(ended)))
        while waiting and len(at_work) < 100:
            at_work.append((length := waiting.pop(0), length))
        tokens += sum(min(10, left) for _, left in at_work)
        ended += [length for length, left in at_work if left <= 10]
        at_work = [(length, left - 10) for length, left in at_work if left > 10]
        second += 1
    assert told[5] is None and told[6] is None, "too few rows have ended"
    for at, within in [(8, 0.5), *((at, 0.2) for at in range(20, second))]:
        left = told[at]
        assert left is not None, at
        # That slots are empty while the last rows end is not foreseen: here it costs ten seconds.
        assert left == pytest.approx(second - at, rel=within, abs=10), at


def test_what_is_left_is_told_by_rows_where_tokens_tell_nothing():
    meter = Meter()
    meter.add(0.0, 0, 0)
    meter.add(10.0, 40, 0)
    assert meter.seconds_left(100, Progress(ok=30, rejected=10)) == 15.0, "no step calls a model"
    meter.clear()
    meter.add(0.0, 0, 100)
    assert meter.seconds_left(100, Progress(ok=40, output_tokens=100, ended_tokens=100)) is None, "no rates yet"
    meter.add(10.0, 40, 1100)
    assert meter.seconds_left(50, Progress(ok=40, output_tokens=1100, ended_tokens=800)) == 2.5, "the last are long"
    assert meter.seconds_left(40, Progress(ok=40)) == 0.0
    meter.clear()
    meter.add(20.0, 40, 1100)
    assert meter.seconds_left(40, Progress(ok=40, output_tokens=900, ended_tokens=900)) == 0.0, "without rates too"


def test_of_a_small_run_a_tenth_of_the_rows_is_enough_to_tell():
    meter = Meter()
    meter.add(0.0, 0, 0)
    meter.add(10.0, 2, 200)
    done = Progress(ok=2, output_tokens=200, ended_tokens=160)
    assert meter.seconds_left(20, done) == 70.0
    assert meter.seconds_left(30, done) is None
    done = Progress(ok=19, output_tokens=1900, ended_tokens=1900)
    assert meter.seconds_left(1000, done) is None
    assert meter.seconds_left(1000, done + Progress(ok=1, output_tokens=100, ended_tokens=100)) == 98_000 / 20
