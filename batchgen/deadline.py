"""When a run is to be over: a night ends at some time, and what is there by then is to be a dataset."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from batchgen.errors import UserError

_CLOCK = re.compile(r"(\d\d?):(\d\d)")
_SPAN = re.compile(r"(?=\d)(?:(\d{1,4})h)?(?:(\d{1,5})m)?")
_LEGAL = "a time of day (07:00), a date and a time (2027-01-31T07:00), or hours and minutes from now (8h, 90m, 1h30m)"
# The clock of a machine may be set meanwhile.
_LOOK_SECONDS = 10.0


def parse_until(text: str, now: datetime | None = None) -> datetime:
    """A time as a user writes it: by the clock of this machine, where it has no offset from UTC.

    Raises:
        UserError: it is none, or over.
    """
    now = now or datetime.now()
    try:
        if clock := _CLOCK.fullmatch(text):
            until = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
            until += timedelta(days=until <= now)
        elif span := _SPAN.fullmatch(text):
            until = now + timedelta(hours=int(span[1] or 0), minutes=int(span[2] or 0))
        else:
            until = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--until {text!r}: expected {_LEGAL}") from None
    if until.astimezone() <= now.astimezone():
        raise UserError(f"--until {text!r}: that is over; it is {now:%Y-%m-%d %H:%M} here")
    return until.astimezone()


def without_past(words: Sequence[str], now: datetime | None = None) -> list[str]:
    """The words of a command line, but for an `--until` that is over: a date, where a time of day comes again."""
    left, words = [], deque(words)
    while words:
        option = [words.popleft()]
        if option[0] == "--until" and words:
            option.append(words.popleft())
        if option[0].partition("=")[0] != "--until" or _is_to_come(option[-1].removeprefix("--until="), now):
            left += option
    return left


def _is_to_come(text: str, now: datetime | None) -> bool:
    try:
        return bool(parse_until(text, now))
    except UserError:
        return False


class Deadline:
    """The time at which a run hands out nothing more.

    Args:
        at: in local time where it has no time zone.
    """

    def __init__(self, at: datetime) -> None:
        self._at = at.astimezone()
        self.reason = f"its time is up ({self._at:%H:%M})"

    async def watch(self, stop: Callable[[str], None]) -> None:
        """Waits for the time, and calls `stop` with the reason then."""
        while (left := (self._at - datetime.now().astimezone()).total_seconds()) > 0:
            await asyncio.sleep(min(left, _LOOK_SECONDS))
        stop(self.reason)
