"""What a driver sees of an engine that is up."""

from __future__ import annotations

from batchgen.progress import Progress
from batchgen.pulse import Pulse


def test_an_engine_moves_as_long_as_what_it_says_changes():
    pulse = Pulse(moved=10.0, held=1)
    assert (pulse.waiting, pulse.in_flight) == ("", 0)
    pulse.felt(Progress(output_tokens=5, in_flight=3), 20.0)
    assert (pulse.moved, pulse.in_flight) == (20.0, 3)
    pulse.felt(Progress(output_tokens=5, in_flight=4), 30.0)
    pulse.felt(None, 40.0)
    assert pulse.moved == 20.0
    assert not pulse.hangs(50.0, seconds=30.0)
    assert pulse.hangs(50.1, seconds=30.0)


def test_rows_that_it_works_on_are_known_only_from_its_last_word():
    pulse = Pulse(moved=0.0, held=1)
    pulse.felt(Progress(ok=3, open_rows=(4, 5)), 10.0)
    pulse.felt(Progress(ok=3, open_rows=(5, 6)), 20.0)
    assert (pulse.open_rows, pulse.moved) == ((5, 6), 10.0)
    pulse.felt(None, 30.0)
    assert pulse.open_rows == ()


def test_one_without_work_does_not_hang():
    assert not Pulse(moved=0.0).hangs(1e6, seconds=1.0)
    assert Pulse(moved=0.0, held=2).hangs(1e6, seconds=1.0)


def test_one_that_waits_does_not_hang_as_long_as_it_says_so():
    pulse = Pulse(moved=0.0, held=1)
    for now in (10.0, 20.0, 30.0):
        pulse.felt(Progress(waiting="the store is away"), now)
        assert (pulse.waiting, pulse.moved) == ("the store is away", now)
    pulse.felt(None, 40.0)
    assert pulse.moved == 30.0
    pulse.felt(Progress(), 50.0)
    assert (pulse.waiting, pulse.moved) == ("", 50.0)


def test_what_is_committed_is_counted_once():
    pulse = Pulse(moved=0.0)
    assert pulse.beyond() == Progress()
    pulse.felt(Progress(10, 3, {"a": 2, "b": 1}, 100, 50, {"n": 4}, 45), 1.0)
    pulse.receipted += Progress(8, 2, {"a": 2}, 90, 30, {"n": 1}, 30)
    assert pulse.beyond() == Progress(2, 1, {"b": 1}, 10, 20, {"n": 3}, 15)


def test_a_receipt_may_come_before_the_engine_has_said_so():
    pulse = Pulse(moved=0.0, live=Progress(ok=1, output_tokens=7))
    pulse.receipted += Progress(8, 2, {"a": 2}, 90, 30, {"n": 1})
    assert pulse.beyond() == Progress()
