"""What follows from engines that do not start, or are no good where they are: pure, and without a clock.

A cause that all engines share ends the run at once, or after a few tries. Where others work, or may still come up, it
is likely that of one machine: its place is left empty, so that it costs the others nothing, and tried again once they
have done some more of the work.
"""

from __future__ import annotations

from batchgen.errors import EngineStartError, Stopped

# Shards that each other engine does before an empty place is tried again.
_REST_SHARDS = 4


class Starts:
    """Engine starts of one run that came to nothing.

    Args:
        most: failed starts in a row, or failed trials in a row, over all engines, after which none is replaced.
        resumed: whether engines of the run did some of the work before.
    """

    def __init__(self, most: int, resumed: bool = False) -> None:
        self._most = most
        self._resumed = resumed
        self._in_a_row = 0
        self._failed_trials = 0
        self._came_up = False
        self._rest = 0
        self.left_empty = 0

    @property
    def no_good(self) -> int:
        """Engines in a row that did not come up, or were no good after it: as many more are worth a try."""
        return self._in_a_row + self._failed_trials

    def succeeded(self) -> None:
        """An engine came up."""
        self._in_a_row = 0
        self._came_up = True

    def failed(
        self, error: str, others: int, final: bool = False, outage: bool = False
    ) -> EngineStartError | Stopped | None:
        """An engine did not come up; returns what ends the run, where that does.

        Args:
            others: engines that are up, or coming up.
            final: another start would fail as well. Where one has come up before, it is given the benefit of the doubt.
            outage: what it needs elsewhere was waited for in vain, which is no reason to wait for it again at once.
                What never was in reach may not exist: then the run has failed, and is not only stopped.
        """
        self._in_a_row += 1
        if outage and not others and (self._came_up or self._resumed):
            return Stopped(error)
        at_once = outage or (final and not self._came_up)
        tries = "" if at_once else f"engines failed to start {self._in_a_row} times in a row; the last time: "
        return self._given_up(tries + error, others) if at_once or self._in_a_row >= self._most else None

    def trial_passed(self) -> None:
        """An engine that had done nothing before survived some rows."""
        self._failed_trials = 0

    def trial_failed(self, error: str, others: int) -> EngineStartError | None:
        """An engine came up and died of rows that another one had survived; returns what ends the run, if that does."""
        self._failed_trials += 1
        message = f"engines died {self._failed_trials} times in a row on rows that are sound; the last time: {error}"
        return self._given_up(message, others) if self._failed_trials >= self._most else None

    def _given_up(self, message: str, others: int) -> EngineStartError | None:
        if not others:
            return EngineStartError(message)
        self.leave_empty(others)
        return None

    def leave_empty(self, others: int) -> None:
        """Leaves a place empty on which engines are no good, until the others have done some more."""
        self._rest = self._rest or _REST_SHARDS * others
        self.left_empty += 1

    def shard_done(self) -> bool:
        """Another engine has done a shard; whether the empty places are tried again now."""
        if not self.left_empty:
            return False
        self._rest -= 1
        return self._rest <= 0 and self.try_again()

    def try_again(self) -> bool:
        """Leaves no place empty any more; whether any was."""
        was, self.left_empty, self._rest = self.left_empty, 0, 0
        return was > 0
