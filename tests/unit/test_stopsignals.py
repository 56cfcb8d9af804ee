"""Signals at moments at which no driver is at work."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchgen import api, run
from batchgen.errors import Stopped
from batchgen.stopsignals import signals_put_off, stopped_by_signals
from tests.helpers import chaos_job


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Each test leaves the handlers as they were."""
    # A shell has what it starts in the background ignore Ctrl-C.
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    signal.signal(signal.SIGINT, interrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("at", ["plan_run", "merge_run"])
def test_a_run_is_stopped_while_it_plans_and_while_it_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, number: signal.Signals
):
    job, real = chaos_job(tmp_path / "run"), getattr(api, at)

    def told(*arguments, **named):
        send(number)
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(api, at, told)
        with pytest.raises(Stopped, match=number.name):
            run(job, in_process=True)
    assert run(job, in_process=True).progress.ok == 40


def test_ctrl_c_stays_what_it_is_to_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(api, "plan_run", lambda *arguments: send(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(chaos_job(tmp_path / "run"), in_process=True)


def test_what_swallows_exceptions_does_not_swallow_it():
    with pytest.raises(Stopped, match="SIGTERM"), stopped_by_signals():
        try:
            send(signal.SIGTERM)
        except Exception:
            pytest.fail("it is none")


def test_two_hangups_are_one():
    with pytest.raises(Stopped, match="SIGHUP"), stopped_by_signals():
        try:
            send(signal.SIGHUP)
        finally:
            send(signal.SIGHUP)
            tidied = True
    assert tidied


def test_who_ignores_hangups_goes_on():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals(), signals_put_off():
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP] * 2, [signal.SIGTERM, signal.SIGHUP]])
def test_what_must_not_be_left_half_done_is_done(numbers: list[int]):
    done = []
    with pytest.raises(Stopped, match=signal.Signals(numbers[0]).name), stopped_by_signals():
        with signals_put_off():
            send(*numbers)
            done.append("within")
        done.append("after")
    assert done == ["within"]


def test_a_second_one_is_not_put_off():
    done = []
    with pytest.raises(KeyboardInterrupt), signals_put_off():
        send(signal.SIGINT)
        done.append("within")
        send(signal.SIGINT)
        done.append("after")
    assert done == ["within"]
