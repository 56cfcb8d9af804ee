"""One run from a job to a published dataset: plan, generate, merge, publish. The same call resumes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from batchgen.benchmarks import read_benchmarks
from batchgen.commit import Manifest, committed, generation_of
from batchgen.deadline import Deadline
from batchgen.drive import Driver, Status
from batchgen.engines.installed import missing
from batchgen.errors import JobError, ModelError, Stopped, StoreError, UserError
from batchgen.fleet import Fleet, HostConfig, place_engines
from batchgen.job import Job
from batchgen.known import committed_texts
from batchgen.merge.conversations import chat_columns
from batchgen.merge.outlook import Outlook
from batchgen.merge.version import Version, merge_run
from batchgen.models import check_models
from batchgen.outage import outlast_store
from batchgen.paths import expanded, resolved
from batchgen.patience import stall_seconds
from batchgen.plan import Plan, make_plan
from batchgen.problems import placed
from batchgen.progress import Progress
from batchgen.prospects import all_rejected, hopeless
from batchgen.publish import check_target, check_writable, publish_folder, publish_store, unwritable_is_told
from batchgen.remarks import remarks
from batchgen.result import Result
from batchgen.savedjob import check_vacant, save_job
from batchgen.schedule import Scheduler
from batchgen.seeds import Seeds, load_seeds
from batchgen.settle import read_plan, settle_plan
from batchgen.software import changes
from batchgen.step import OwnTasks
from batchgen.stopsignals import handled_in_loop, stopped_by_signals
from batchgen.store import ObjectStore, is_remote, log_folder, open_store, probe
from batchgen.telling import Tell

Watch = Callable[[Status], None]


def plan_run(job: Job, trust_remote_code: bool = False) -> tuple[Plan, Seeds]:
    """Checks everything that can be checked without an engine, and plans the run; writes nothing.

    Raises:
        UserError: names field, file and line.
    """
    check_output(job.output)
    seeds = load_seeds(job.source)
    plan = make_plan(job, seeds)
    chat_columns(job, plan)
    read_benchmarks(job.merge.decontaminate)
    return plan.with_versions(check_models(job, trust_remote_code)), seeds


def run(
    job: Job | Mapping[str, Any] | str | Path,
    address: str | None = None,
    watch: Watch = lambda status: None,
    trust_remote_code: bool = False,
    in_process: bool = False,
    tasks: OwnTasks | None = None,
    until: datetime | None = None,
    extend: bool = False,
) -> Result:
    """Runs a job to its published dataset, or goes on with a run that was interrupted.

    Args:
        job: a job, its tree, or the path of its file.
        address: of a running Ray cluster; None starts a Ray on this machine for the time of the run.
        watch: called with the status about once a second; `show_progress()` prints it.
        trust_remote_code: lets the model's repository run its own code.
        in_process: runs the engines in this process, without Ray.
        tasks: entries for tasks of the caller's own, by the name that the job's steps use; see `own_task`.
        until: when nothing more is begun, in local time where it has no time zone: what is there then is merged and
            published (`Result.complete` is false), and the same call goes on with the rest.
        extend: whether a run of the first of the job's seed rows is given the others.

    Raises:
        UserError: bad input; no engine was started.
        Stopped: ended early; the same call goes on.
        BatchgenError: failed.
    """
    if not isinstance(until, datetime | None):
        raise UserError(f"run: until: expected a datetime, got {type(until).__name__}")
    options = _RunOptions(
        address, watch, trust_remote_code, in_process, Deadline(until) if until is not None else None, extend
    )
    with stopped_by_signals():
        if isinstance(job, Mapping):
            job = Job.of(job, tasks=tasks)
        elif isinstance(job, str | Path):
            try:
                return _run(Job.load(job, tasks=tasks), options)
            except UserError as error:
                raise type(error)(placed(str(error), job)) from error
        elif not isinstance(job, Job):
            raise JobError(f"run: expected a Job, its tree, or the path of its file, got {type(job).__name__}")
        return _run(job, options)


@dataclass(frozen=True)
class _RunOptions:
    """How a job is run, as `run` was told; nothing of it is part of the job."""

    address: str | None
    watch: Watch
    trust_remote_code: bool
    in_process: bool
    deadline: Deadline | None
    extend: bool


def _run(job: Job, options: _RunOptions) -> Result:
    watch, deadline = options.watch, options.deadline
    plan, seeds = plan_run(job, options.trust_remote_code)
    if options.in_process or not (options.address or os.environ.get("RAY_ADDRESS")):
        _check_installed(job)
    store = open_store(job.output)
    last = Status(plan.rows, Progress(), len(plan.shards), 0)

    def tell(notes: Sequence[str] = (), merge: str = "") -> None:
        watch(replace(last, engines=0, engines_ready=0, tokens_per_second=0.0, notes=tuple(notes), merge=merge))

    def waits(what: str, reason: str) -> None:
        tell([f"the {what} waits: {reason}"])

    def merging(text: str) -> None:
        tell(merge=text)

    if noted := remarks(job, plan):
        tell(noted)
    plan, manifests = outlast_store(
        lambda: _begin(job, store, plan, seeds if options.extend else None), job.outage_seconds, partial(waits, "run")
    )
    last = Status(plan.rows, progress_of(manifests), len(plan.shards), len(manifests))
    if plan.earlier:
        began = plan.earlier[0].rows
        tell([f"the run began with {began:,} seed rows and has {plan.rows:,} now"])
    if len(manifests) < len(plan.shards) and (changed := changes(job, manifests.values())):
        tell([f"of the shards that are there, some were made with {changed}; the run goes on with that"])

    def show(status: Status) -> None:
        nonlocal last
        last = status
        watch(status)

    publish = partial(_publish, job, store, plan, merging)
    if len(manifests) < len(plan.shards):
        # What Ray prints from here on is kept where `watch` has it kept: its connection can end this process.
        watch(last)
        config = HostConfig(job, plan, store.location, job.seed, options.trust_remote_code)
        with _fleet(config, options.address, options.in_process) as (fleet, engines):
            try:
                _generate(job, plan, seeds, store, manifests, fleet, engines, show, deadline)
            except Stopped as error:
                if deadline is None or str(error) != deadline.reason:
                    raise
                publish = partial(_publish_partly, job, store, plan, merging, deadline.reason)

    return outlast_store(publish, job.outage_seconds, partial(waits, "merge"))


def _begin(job: Job, store: ObjectStore, plan: Plan, extend: Seeds | None) -> tuple[Plan, dict[int, Manifest]]:
    """Settles a run in its store, or finds it there, with what is committed."""
    probe(store)
    check_vacant(store)
    plan = settle_plan(store, plan, extend)
    save_job(store, job)
    return plan, committed(store, plan)


def _publish(job: Job, store: ObjectStore, plan: Plan, tell: Tell) -> Result:
    """Merges and publishes a run whose shards are all committed."""
    progress = progress_of(_all_committed(store, plan))
    if progress.ok == 0:
        raise all_rejected(job, progress, f"all {plan.rows} rows", "there is nothing to publish")
    _check_newest(store, plan)
    return _published(job, store, progress, merge_run(store, plan, job, tell=tell))


def _publish_partly(job: Job, store: ObjectStore, plan: Plan, tell: Tell, reason: str) -> Result:
    """Merges and publishes those shards of a run that are committed.

    Raises:
        Stopped: for the reason given, before there was a good row.
    """
    progress = progress_of(committed(store, plan))
    if progress.ok == 0:
        raise Stopped(f"{reason}, before a good row was committed: there is nothing to publish")
    _check_newest(store, plan)
    return _published(job, store, progress, merge_run(store, plan, job, partial=True, tell=tell))


def _check_newest(store: ObjectStore, plan: Plan) -> None:
    """Leaves the dataset to whoever extended the run meanwhile: without the rows that were added it would be older.

    Raises:
        Stopped: says so.
    """
    rows = read_plan(store).rows
    if rows != plan.rows:
        raise Stopped(f"the run was extended to {rows:,} seed rows while this command ran; go on with the job of those")


def _published(job: Job, store: ObjectStore, progress: Progress, version: Version) -> Result:
    if is_remote(job.output):
        return Result(job.output, progress, version, publish_store(store, version))
    folder = publish_folder(store, version, expanded(job.output) / "dataset")
    return Result(job.output, progress, version, str(folder))


def _all_committed(store: ObjectStore, plan: Plan) -> dict[int, Manifest]:
    """The manifests of a run whose shards have all been committed.

    Raises:
        Stopped: some are to be generated again.
        StoreError: some are not in sight; NFS shows what another machine wrote up to a minute late.
    """
    manifests = committed(store, plan)
    missing = [shard for shard in plan.shards if shard.index not in manifests]
    shards = "1 shard was" if len(missing) == 1 else f"{len(missing):,} shards were"
    if any(generation_of(store, shard) for shard in missing):
        raise Stopped(f"{shards} revoked while the run went on")
    if missing:
        raise StoreError(f"{shards} committed to {store.location}, where this machine does not see them")
    return manifests


def _check_installed(job: Job) -> None:
    """Refuses a job whose engines would lack a package on this machine, which is where they are to run.

    Raises:
        ModelError: says which, and how to get it.
    """
    for name, model in job.used_models.items():
        if model.path != "chaos" and (message := missing(model.backend)) is not None:
            raise ModelError(f"{'model' if name is None else f'models.{name}'}.backend: {message}")


def check_output(output: str) -> None:
    """Refuses an output folder that cannot be written or published in, before anything starts; leaves no trace.

    Raises:
        UserError: with the reason.
        StoreError: it cannot just now.
    """
    if is_remote(output):
        return  # `probe` asks the store itself
    with unwritable_is_told(f"output: {output!r}"):
        check_writable(resolved(output))
        check_target(Path(output) / "dataset")


def progress_of(manifests: dict[int, Manifest]) -> Progress:
    """What all committed shards hold."""
    total = Progress()
    for manifest in manifests.values():
        total += manifest.progress
    return total


@contextlib.contextmanager
def _fleet(config: HostConfig, address: str | None, in_process: bool) -> Iterator[tuple[Fleet, int]]:
    """Where engines run, and how many."""
    job = config.job
    if in_process:
        from batchgen.host import LocalFleet

        yield LocalFleet(config, job.engines or 1), job.engines or 1
        return
    from batchgen.distributed.cluster import connected
    from batchgen.distributed.fleet import RayFleet

    with connected(address, job.engines) as cluster:
        placement = place_engines(job, cluster.machines, cluster.local)
        yield RayFleet(config, log_folder(config.store), placement, cluster.local), placement.engines


def stall_after(job: Job) -> float:
    """Seconds in which nothing comes of an engine until it is taken for hung."""
    longest = max(
        (stall_seconds(job.step_sampling(step)["max_tokens"]) for step in job.steps), default=stall_seconds(1)
    )
    return job.stall_seconds or longest


def _generate(
    job: Job,
    plan: Plan,
    seeds: Seeds,
    store: ObjectStore,
    manifests: dict[int, Manifest],
    fleet: Fleet,
    engines: int,
    watch: Watch,
    deadline: Deadline | None,
) -> None:
    missing = [shard for shard in plan.shards if shard.index not in manifests]
    before = progress_of(manifests)
    outlook = Outlook(store, plan, job, before.ok + before.rejected)

    def look(status: Status) -> None:
        committed_rows = status.rows * status.shards_done // max(1, status.shards)
        watch(replace(status, notes=(*status.notes, *outlook.news(committed_rows))))
        # Before any of them is committed there is nothing to look at.
        if status.shards_done > len(manifests) and (error := hopeless(job, status, before)) is not None:
            driver.fail(error)

    driver = Driver(
        Scheduler(missing, engines, max_engine_deaths=job.max_engine_deaths, resumed=bool(manifests)),
        fleet,
        seeds,
        shards=len(plan.shards),
        shards_before=len(manifests),
        before=before,
        engines=engines,
        watch=look,
        stall_seconds=stall_after(job),
        start_seconds=job.start_seconds,
        texts_before=committed_texts(store, plan, job, manifests),
    )

    try:
        _drive_to_its_end(driver, deadline)
    finally:
        outlook.close()


def _drive_to_its_end(driver: Driver, deadline: Deadline | None) -> None:
    running = None
    with contextlib.suppress(RuntimeError):
        running = asyncio.get_running_loop()
    if running is None:
        asyncio.run(_drive(driver, deadline))
    else:
        _drive_beside(driver, deadline)


async def _drive(driver: Driver, deadline: Deadline | None) -> None:
    with handled_in_loop(driver.request_stop):
        stop = partial(driver.request_stop, insist=False)
        watching = asyncio.create_task(deadline.watch(stop)) if deadline is not None else None
        try:
            await driver.run()
        finally:
            if watching is not None:
                watching.cancel()


def _drive_beside(driver: Driver, deadline: Deadline | None) -> None:
    """Drives in a thread: a notebook has an event loop of its own in this one, and interrupts it by an exception."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: asyncio.run(_drive(driver, deadline)))
        while not running.done():
            try:
                wait([running])
            except KeyboardInterrupt as error:
                driver.request_stop(str(error) or "interrupted")
        running.result()
