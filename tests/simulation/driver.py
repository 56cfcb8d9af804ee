"""A driver of the simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchgen import commit
from batchgen.schedule import Dispatch, Finish, KillEngine, Recall, Scheduler, StartEngine

if TYPE_CHECKING:
    from tests.simulation.sim import Simulation


class Driver:
    """One driver with its scheduler: real code, fed with the simulation's events."""

    def __init__(self, sim: Simulation, number: int) -> None:
        self.sim, self.number, self.alive = sim, number, True
        # It goes on with this one, though others may give the run more rows.
        self.plan = plan = sim.plan
        done = sim.outside(lambda: commit.committed(sim.store, plan))
        missing = [shard for shard in plan.shards if shard.index not in done]
        self.scheduler = Scheduler(missing, 2, max_attempts=50, max_engine_deaths=500)
        self.finished = False
        self.perform(self.scheduler.start())

    def perform(self, actions: list[Any]) -> None:
        """Carries out the scheduler's actions at once."""
        for action in actions:
            if isinstance(action, StartEngine):
                self.perform(self.scheduler.engine_ready(action.engine, 1))
            elif isinstance(action, Dispatch):
                self.sim.begin(self, action)
            elif isinstance(action, Recall):
                self.sim.recall(self, action)
            elif isinstance(action, KillEngine):
                self.sim.lose_engine((self.number, action.engine))
            elif isinstance(action, Finish):
                self.finished = True

    def told(self, action: Dispatch, outcome: str) -> None:
        """An answer arrived."""
        event = {
            "done": self.scheduler.shard_done,
            "unavailable": lambda e, s: self.scheduler.service_failed(e, s, "sim", self.sim.only_here()),
        }[outcome]
        if action.rows is not None and outcome == "done":
            event = self.scheduler.probe_done
        self.perform(event(action.engine, action.shard.index))
