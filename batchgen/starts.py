"""What follows from engines that do not start: pure, and without a clock.

A cause that all engines share ends the run at once, or after a few tries. Where others work, or may still come up, it
is likely that of one machine: its place is left empty, so that it costs the others nothing, and tried again once they
have done some more of the work.
"""

from __future__ import annotations

from batchgen.errors import EngineStartError

# Shards that each other engine does before an empty place is tried again.
_REST_SHARDS = 4


class Starts:
    """Failed engine starts of one run.

    Args:
        most: failed starts in a row, over all engines, after which none is replaced.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0
        self._came_up = False
        self._rest = 0
        self.left_empty = 0

    def succeeded(self) -> None:
        """An engine came up."""
        self._in_a_row = 0
        self._came_up = True

    def failed(self, error: str, final: bool, others: int) -> EngineStartError | None:
        """An engine did not come up; returns what ends the run, where that does.

        Args:
            final: another start would fail as well. Where one has come up before, it is given the benefit of the doubt.
            others: engines that are up, or coming up.
        """
        self._in_a_row += 1
        at_once = final and not self._came_up
        if not at_once and self._in_a_row < self._most:
            return None
        if others:
            self._rest = self._rest or _REST_SHARDS * others
            self.left_empty += 1
            return None
        tries = f"engines failed to start {self._in_a_row} times in a row; the last time: "
        return EngineStartError(error if at_once else tries + error)

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
