"""The texts that a run has, at the gates of its job: those of committed rows, whichever engines they are from.

A gate knows what its own engine ran. What others committed, since the run began or before it was resumed, it is told
once a second: a duplicate of any of these ends before its answer is paid for. Rows that are not committed may still be
lost, and their texts with them: nobody else is told of those.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from batchgen.commit import Manifest, check_shard
from batchgen.errors import CorruptShard, StoreError
from batchgen.job import Job
from batchgen.plan import Plan
from batchgen.rows import OK
from batchgen.store.base import ObjectStore
from batchgen.tasks.spec import Gate

# For every gate of a job what its `describe` gives.
Texts = tuple[bytes, ...]
# That an engine is told at a time: with a threshold it is busy with them for 40 ms.
_MOST_BYTES = 4 << 20
# For a shard that is being read as a run ends: Arrow must not be at work when the process does.
_READ_SECONDS = 10.0


class KnownTexts:
    """The texts of a run, and which of them each engine has been told."""

    def __init__(self) -> None:
        self._all: list[tuple[int | None, Texts]] = []
        self._told: dict[int, int] = {}
        self._reader: threading.Thread | None = None
        self._closed = threading.Event()

    def read(self, before: Iterable[Texts], tell: Callable[[str], None]) -> None:
        """Has a thread take in the texts from before a run was resumed, while its engines come up.

        Args:
            before: shard by shard; it may hang in a store that is out of reach.
            tell: told why they are not all known, where they cannot be.
        """

        def take_in() -> None:
            try:
                for texts in before:
                    if self._closed.is_set():
                        return
                    self.add(texts)
            except Exception as error:  # a defect, which costs answers and no row; its text may quote one
                tell(f"duplicates of rows from before are left to the merger: {type(error).__name__}")

        self._reader = threading.Thread(target=take_in, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Waits for what is being read, but not for long."""
        self._closed.set()
        if self._reader is not None:
            self._reader.join(_READ_SECONDS)

    def add(self, texts: Texts, engine: int | None = None) -> None:
        """Takes in those of a shard, and the engine that ran it, which knows them."""
        self._all.append((engine, texts))

    def untold(self, engine: int) -> Texts:
        """What an engine is to be told next: the oldest that it does not know, for each gate; nothing, at the end."""
        told = self._told.get(engine, 0)
        found: list[Texts] = []
        size = 0
        while told < len(self._all) and size < _MOST_BYTES:
            source, texts = self._all[told]
            told += 1
            if source != engine:
                found.append(texts)
                size += sum(map(len, texts))
        self._told[engine] = told
        return tuple(map(b"".join, zip(*found, strict=True)))


def gate_columns(job: Job) -> Mapping[int, str]:
    """The columns that a job's gates read, by the gates' steps."""
    gates = {index: step for index, step in enumerate(job.steps) if step.spec.gate is not None}
    return {index: column for index, step in gates.items() for column in step.reads.values()}


def describe(gates: Sequence[tuple[str, Gate]], rows: Sequence[Mapping[str, Any]]) -> Texts:
    """The texts of rows that ended well, for gates that read the columns beside them."""
    return tuple(gate.describe([row[column] for row in rows]) for column, gate in gates)


def committed_texts(store: ObjectStore, plan: Plan, job: Job, manifests: Mapping[int, Manifest]) -> Iterator[Texts]:
    """Those of committed shards, one after the other; nothing where the job has no gate.

    A shard that cannot be read is left out, and so are the ones after it where the store fails: it costs some answers
    here, and the merger says what is wrong.
    """
    if not (columns := gate_columns(job)):
        return
    gates = [
        (columns[index], new_gate(step.parameters))
        for index, step in enumerate(job.steps)
        if (new_gate := step.spec.gate) is not None
    ]
    ordered = [manifests[index] for index in sorted(manifests)]
    files = store.read_many([manifest.key for manifest in ordered])
    for manifest in ordered:
        try:
            table = check_shard(plan, manifest, next(files))
        except CorruptShard:
            continue
        except StoreError:
            return
        rows = table.filter(pc.equal(table["outcome"], OK)).select(list(dict.fromkeys(columns.values())))
        yield describe(gates, rows.to_pylist())
