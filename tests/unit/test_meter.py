"""The rates of a run, by a clock of the test's own."""

from __future__ import annotations

import pytest

from batchgen.meter import Meter


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
