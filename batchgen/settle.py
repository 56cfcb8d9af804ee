"""The plans of a run in its store: written once each, and what a job's own command finds there.

A run that is given more rows gets a further plan, over the same rows and those behind them. The shards that there are
stay as they are, whichever of the plans the drivers know that run them.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from batchgen.errors import PlanMismatch
from batchgen.faultpoints import reach
from batchgen.plan import PLAN_KEY, Earlier, Plan
from batchgen.seeds import Seeds
from batchgen.store.base import ObjectStore

_FURTHER_KEY = re.compile(r"plans/(\d{4,})\.json")


def settle_plan(store: ObjectStore, plan: Plan, extend: Seeds | None = None) -> Plan:
    """Writes the plan, or checks that it is the one that the run has already.

    Args:
        extend: the seeds, where a run of their first rows is to be given the others.

    Raises:
        PlanMismatch: names what changed.
    """
    existing = newest_plan(store)
    while True:
        settled = plan if existing is None else continued_plan(store, plan, existing, extend)
        if settled is existing:
            return settled
        reach("before the plan")
        if store.put_if_absent(settled.key, settled.dump()):
            reach("after the plan")
            return settled
        existing = _plan_at(store, settled.key)  # another command was faster


def continued_plan(store: ObjectStore, plan: Plan, existing: Plan, extend: Seeds | None = None) -> Plan:
    """With which plan a run goes on: the one that it has, or one that extends it. Writes nothing.

    Args:
        plan: the job's.
        existing: the newest that the run has.
        extend: as of `settle_plan`.

    Raises:
        PlanMismatch: names what changed.
    """
    # A model on the Hub may have gone on since: the run stays with the commit that it began with.
    then = existing.inputs
    kept = {name for name in then if name.endswith(".commit") and f"{name.removesuffix('.commit')}.path" in then}
    plan = replace(plan, inputs={name: then[name] if name in kept else now for name, now in plan.inputs.items()})
    if existing.fingerprint == plan.behind(existing.earlier).fingerprint:
        return existing
    has_more = plan.rows > existing.rows and {**plan.inputs, "seeds": None} == {**existing.inputs, "seeds": None}
    if extend is None or not has_more:
        hint = " If the new rows stand behind the old ones, --extend adds them to the run." * has_more
        raise PlanMismatch(
            f"{store.location} holds a run of another job; changed since then:\n{_changes(existing, plan)}\n"
            f"Resume with the job as it was, or give another --output.{hint}"
        )
    if extend.fingerprint_of(existing.rows) != existing.inputs["seeds"] or plan.schema != existing.schema:
        raise PlanMismatch(
            f"{store.location} cannot be extended: the first {existing.rows:,} seed rows are not those that it has. "
            "Rows can only be added behind them."
        )
    return plan.behind((*existing.earlier, Earlier(existing.rows, existing.fingerprint)))


def read_plan(store: ObjectStore) -> Plan:
    """The newest plan of a run.

    Raises:
        PlanMismatch: there is none, or it cannot be read.
    """
    if (plan := newest_plan(store)) is None:
        hint = "; a run is the folder that its job has as `output`" * Path(store.location).is_file()
        raise PlanMismatch(f"{store.location} is not a batchgen run: it has no {PLAN_KEY}{hint}")
    return plan


def newest_plan(store: ObjectStore) -> Plan | None:
    """The newest plan of a run; None where there is no run."""
    further = {int(found[1]): key for key in store.list("plans") if (found := _FURTHER_KEY.fullmatch(key))}
    return _plan_at(store, further[max(further)] if further else PLAN_KEY)


def _plan_at(store: ObjectStore, key: str) -> Plan | None:
    data = store.read(key)
    return Plan.parse(data, key) if data is not None else None


def _changes(old: Plan, new: Plan) -> str:
    lines = []
    absent = object()
    for name in dict.fromkeys((*old.inputs, *new.inputs)):
        before, now = old.inputs.get(name, absent), new.inputs.get(name, absent)
        if before == now:
            continue
        if name == "seeds":
            lines.append(
                f"  seeds: {old.rows} rows then, {new.rows} now" + (" (other content)" * (old.rows == new.rows))
            )
        else:
            shown = ["absent" if v is absent else json.dumps(v, ensure_ascii=False)[:80] for v in (before, now)]
            lines.append(f"  {name}: {shown[0]} then, {shown[1]} now")
    return "\n".join(lines) or "  the shards' bounds (another version of batchgen)"
