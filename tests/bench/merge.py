"""Merging: near-duplicate removal against datasketch's MinHashLSH, and the time and memory of a whole merge."""

from __future__ import annotations

import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pyarrow as pa

from batchgen.commit import commit_shard, new_attempt
from batchgen.merge import merge_run, near
from batchgen.minhash import normalise, signatures
from batchgen.rows import OK, ResultRow
from tests.helpers import chaos_job, planned

TEXTS = 20_000
ROWS = 1_000_000


def _texts() -> list[str]:
    rng = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    base = [rng.choices(words, k=40) for _ in range(TEXTS // 2)]
    for original in list(base):
        copy = list(original)
        copy[rng.randrange(len(copy))] = "changed"
        base.append(copy)
    rng.shuffle(base)
    return [" ".join(text) for text in base]


def _ours(texts: list[str]) -> int:
    first = near.clusters(signatures(normalise(pa.array(texts))), 0.8)
    return int(sum(index == keep for index, keep in enumerate(first)))


def _datasketch(texts: list[str]) -> int:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=128, params=(16, 8))
    sketches: list[MinHash] = []
    kept = 0
    for number, text in enumerate(texts):
        words = text.lower().split()
        sketch = MinHash(num_perm=128)
        sketch.update_batch([" ".join(words[i : i + 3]).encode() for i in range(len(words) - 2)])
        kept += not any(sketch.jaccard(sketches[other]) >= 0.8 for other in index.query(sketch))
        index.insert(number, sketch)
        sketches.append(sketch)
    return kept


def _commit_rows(folder: str) -> int:
    """A run of `ROWS` rows with answers of 120 words; returns the bytes of text in them."""
    rng = random.Random(1)
    words = [f"w{i}" for i in range(20_000)]
    plan, seeds, store = planned(chaos_job(folder, source={"count": ROWS}))
    size = 0
    for shard in plan.shards:
        rows = seeds.slice(shard.start, shard.stop)
        texts = [(" ".join(rng.choices(words, k=20)), " ".join(rng.choices(words, k=120))) for _ in rows]
        size += sum(len(prompt) + len(answer) for prompt, answer in texts)
        results = [
            ResultRow(row, "", OK, None, {"instruction": prompt, "response": answer}, "bench", "stop", 20, 120)
            for row, (prompt, answer) in zip(rows, texts, strict=True)
        ]
        commit_shard(store, plan, shard, new_attempt(), rows, results)
    return size


def _merge(folder: str) -> tuple[float, float, int]:
    """(seconds, most GB of memory that this process had, rows kept) of a merge."""
    job = chaos_job(folder, source={"count": ROWS})
    plan, _, store = planned(job)
    started = time.perf_counter()
    version = merge_run(store, plan, job)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, version.kept


def _alone(function: Any, *arguments: Any) -> Any:
    """What a function returns, run in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _whole() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        size = _alone(_commit_rows, folder)
        seconds, memory, kept = _alone(_merge, folder)
    return {
        "rows": ROWS,
        "gigabytes_of_text": round(size / 1e9, 2),
        "kept": kept,
        "seconds": round(seconds, 1),
        "most_gigabytes_of_memory": round(memory, 2),
    }


def measure(repeats: int) -> dict[str, Any]:
    """Medians of texts a second, and the ratio; once, what a whole merge takes."""
    texts = _texts()
    _ours(texts[:100])
    rates: dict[str, list[float]] = {"batchgen": [], "datasketch": []}
    kept: dict[str, int] = {}
    for _ in range(repeats):
        for name, run in (("batchgen", _ours), ("datasketch", _datasketch)):
            started = time.process_time()
            kept[name] = run(texts)
            rates[name].append(len(texts) / (time.process_time() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "texts": len(texts),
        "kept": kept,
        "texts_per_cpu_second": {name: round(value) for name, value in medians.items()},
        "ratio": round(medians["batchgen"] / medians["datasketch"], 1),
        "whole_merge": _whole(),
    }
