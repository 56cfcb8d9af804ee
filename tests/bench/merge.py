"""Near-duplicate removal, raw text to keep mask, against datasketch's MinHashLSH doing the same."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import pyarrow as pa

from batchgen.merge import near
from batchgen.merge.rows import normalise

TEXTS = 20_000


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
    first = near.clusters(normalise(pa.array(texts)), 0.8)
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


def measure(repeats: int) -> dict[str, Any]:
    """Medians of texts a second, and the ratio."""
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
    }
