"""Every fault at once: a run on a Ray cluster of several nodes on this machine, under faults drawn from a seed.

`python -m tests.faults.soak [--seed N] [--minutes M] [--bucket]` starts a run on the chaos engine, with two rows that
kill engines and one that hangs them, and does something to it every few seconds: kills and stops drivers, actors and
nodes, pauses them, starts a second driver, takes the bucket away, damages and revokes shards, merges, collects garbage.
The run begins with half of its rows, and is given the others on the way.
After M minutes the run is left alone to end. Then every row has to be there once, and the dataset has to equal, byte
for byte, that of a run to which nothing was done. Not among the tests: it takes about twice M minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.cluster_utils import Cluster

from tests.s3server import LOSE_ANSWER, SLOW, TEAR_ANSWER, Fault, environment, s3_server

ROWS, SHARD_ROWS, NODES = 4000, 8, 3
SHARDS = ROWS // SHARD_ROWS
BAD_ROWS = {777: "POISON", 2222: "HANGS", 3500: "POISON"}
# Exit codes of a driver; also of one that a signal met in its first half second, or as Ray ended.
LEGAL_CODES = (0, 75)
BY_SIGNAL = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, 128 + signal.SIGTERM, 128 + signal.SIGINT)


class Soak:
    """One run and what is done to it.

    Args:
        bucket: whether the run is in a bucket.
    """

    def __init__(self, folder: Path, seed: int, bucket: bool) -> None:
        self._rng = random.Random(seed)
        self._folder = folder
        self._outage: str | None = None
        self._drivers: list[subprocess.Popen[bytes]] = []
        self._killed: set[int] = set()
        self._told: set[int] = set()
        self._started = time.monotonic()
        self.done = 0
        self.complaints: list[str] = []
        self.run = "s3://bucket/run" if bucket else str(folder / "run")
        self._bucket = bucket
        self.job = self._job("job", self.run, rows=ROWS // 2, latency=0.6, slots=8)
        self._extended = False
        self._closing = ExitStack()
        server = self._closing.enter_context(s3_server())
        server.fault = self._fault
        os.environ.update(environment(server))
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._closing.callback(self._cluster.shutdown)
        for _ in range(NODES):
            self._cluster.add_node(num_cpus=1, num_gpus=1)

    def _job(self, name: str, output: str, rows: int = ROWS, **engine: Any) -> Path:
        seeds = self._folder / "seeds.jsonl"
        texts = [f"Tell me about thing number {i}. {BAD_ROWS.get(i, '')}" for i in range(ROWS)]
        seeds.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in texts))
        faults = {"crash_on": "POISON", "hang_on": "HANGS", "crash_mode": "exit"}
        tree = {
            "name": "soak",
            "source": {"path": str(seeds), "limit": rows},
            "model": {"path": "chaos", "engine": {**faults, **engine}},
            "steps": [
                # No two texts are equal: whatever is run again, none may be taken for a duplicate of itself.
                {"task": "drop_duplicates"},
                {"task": "evol_instruct", "output_mappings": {"evolved_instruction": "prompt"}},
                {"task": "text_generation", "input_mappings": {"instruction": "prompt"}},
            ],
            "output": output,
            "shard_rows": SHARD_ROWS,
            "stall_seconds": 20,
            "start_seconds": 60,
            "outage_seconds": 25,
            "max_engine_deaths": 1000,
        }
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def say(self, *words: object) -> None:
        print(f"{time.monotonic() - self._started:7.1f}", *words, flush=True)

    def complain(self, *words: object) -> None:
        self.complaints.append(" ".join(map(str, words)))
        self.say("WRONG:", *words)

    def start(self) -> None:
        """Starts a driver; there may be another."""
        log = (self._folder / f"driver-{time.monotonic_ns()}.log").open("w+b")
        command = [sys.executable, "-m", "batchgen.cli", "run", str(self.job), "--address", self._cluster.address]
        command += ["--extend"] * self._extended
        driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        driver.log = log  # type: ignore[attr-defined]
        self._drivers.append(driver)

    def reap(self) -> None:
        """Takes note of drivers that have ended."""
        for driver in [driver for driver in self._drivers if driver.poll() is not None]:
            self._drivers.remove(driver)
            driver.log.seek(0)  # type: ignore[attr-defined]
            said = driver.log.read().decode()  # type: ignore[attr-defined]
            # One that merges after a shard was damaged, and before that is repaired, says so.
            damaged = driver.returncode == 1 and "is not what was committed" in said
            killed = driver.pid in self._killed and driver.returncode == -signal.SIGKILL
            told = driver.pid in self._told and driver.returncode in BY_SIGNAL
            legal = damaged or killed or told or driver.returncode in LEGAL_CODES
            if not legal or "Traceback" in said:
                self.complain(f"a driver ended with {driver.returncode}:\n{said[-3000:]}")
            self.done += driver.returncode == 0

    def batchgen(self, *arguments: str, legal: tuple[int, ...] = (0,)) -> str:
        """What a command prints."""
        command = [sys.executable, "-m", "batchgen.cli", *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if answer.returncode not in legal or "Traceback" in answer.stderr:
            self.complain(arguments, answer.returncode, answer.stdout[-1000:], answer.stderr[-1000:])
        return answer.stdout

    @property
    def live(self) -> list[subprocess.Popen[bytes]]:
        return [driver for driver in self._drivers if driver.poll() is None]

    def _actors(self) -> list[psutil.Process]:
        found = []
        for node in self._cluster.worker_nodes:
            (raylet,) = node.all_processes["raylet"]
            children = psutil.Process(raylet.process.pid).children(recursive=True)
            found += [child for child in children if "_Actor" in child.name()]
        return found

    # Faults; each says whether there was something to do it to.

    def driver_killed(self) -> bool:
        for driver in self.live[:1]:
            self._killed.add(driver.pid)
            driver.kill()
            return True
        return False

    def driver_told_to_stop(self) -> bool:
        for driver in self.live[:1]:
            self._told.add(driver.pid)
            driver.send_signal(self._rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
            return True
        return False

    def driver_paused(self) -> bool:
        for driver in self.live[:1]:
            return self._pause(psutil.Process(driver.pid))
        return False

    def second_driver(self) -> bool:
        if len(self.live) != 1:
            return False
        self.start()
        return True

    def actor_killed(self) -> bool:
        for actor in self._rng.sample(actors := self._actors(), min(1, len(actors))):
            actor.kill()
            return True
        return False

    def actor_paused(self) -> bool:
        for actor in self._rng.sample(actors := self._actors(), min(1, len(actors))):
            return self._pause(actor)
        return False

    def _pause(self, process: psutil.Process) -> bool:
        def resume() -> None:
            if process.is_running():
                process.resume()

        process.suspend()
        threading.Timer(self._rng.uniform(2, 30), resume).start()
        return True

    def node_replaced(self) -> bool:
        node = self._rng.choice(sorted(self._cluster.worker_nodes, key=id))
        self._cluster.remove_node(node, allow_graceful=self._rng.random() < 0.5)
        self._cluster.add_node(num_cpus=1, num_gpus=1)
        return True

    def raylet_killed(self) -> bool:
        node = self._rng.choice(sorted(self._cluster.worker_nodes, key=id))
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        time.sleep(1)
        self._cluster.remove_node(node, allow_graceful=False)
        self._cluster.add_node(num_cpus=1, num_gpus=1)
        return True

    def store_flaky(self) -> bool:
        return self._away("flaky", 20)

    def store_away(self) -> bool:
        return self._away("away", self._rng.uniform(3, 15))

    def store_away_for_long(self) -> bool:
        return self._away("away", 60)

    def _away(self, how: str, seconds: float) -> bool:
        if not self._bucket or self._outage is not None:
            return False

        def end() -> None:
            self._outage = None

        self._outage = how
        threading.Timer(seconds, end).start()
        return True

    def _fault(self, method: str, key: str) -> Fault:
        if self._outage == "away":
            return 503
        share = random.random() if self._outage == "flaky" else 1.0
        steps = ((0.05, 500), (0.06, 400), (0.08, LOSE_ANSWER), (0.10, TEAR_ANSWER), (0.14, SLOW))
        return next((fault for bound, fault in steps if share < bound), None)

    # What users do meanwhile; a store that is away, or a plan that is not there yet, is told by the exit code.

    def garbage_collected(self) -> bool:
        self.batchgen("gc", self.run, legal=(0, 2, 75))
        return True

    def verified(self) -> bool:
        self.batchgen("verify", self.run, legal=(0, 2, 75))
        return True

    def merged_in_part(self) -> bool:
        self.batchgen("merge", self.run, "--partial", legal=(0, 2, 75))
        return True

    def shard_revoked(self) -> bool:
        shard = f"{self._rng.randrange(SHARDS):06d}"
        return "generated again" in self.batchgen("revoke", self.run, shard, legal=(0, 2, 75))

    def shard_damaged(self) -> bool:
        """One bit of a committed file; `verify` has to name the shard, which is then revoked."""
        if self._bucket:
            return False
        files = sorted(Path(self.run).glob("attempts/*/*.parquet"))
        for file in self._rng.sample(files, min(1, len(files))):
            manifests = sorted((Path(self.run) / "commits" / file.parent.name).glob("*"))
            if not manifests or json.loads(manifests[-1].read_text() or "{}").get("key", "").find(file.name) < 0:
                return False
            data = bytearray(file.read_bytes())
            data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
            file.write_bytes(data)
            command = [sys.executable, "-m", "batchgen.cli", "verify", self.run]
            found = subprocess.run(command, capture_output=True, text=True)
            if found.returncode != 1 or f"shard {file.parent.name}" not in found.stderr:
                self.complain("verify does not name", file, found.returncode, found.stderr)
            self.batchgen("revoke", self.run, file.parent.name)
            return True
        return False

    def rows_added(self) -> bool:
        """To the run; a driver of its first rows goes on with those."""
        if self._extended:
            return False
        self.job = self._job("extended", self.run, latency=0.6, slots=8)
        self._extended = True
        self.start()
        return True

    def nothing(self) -> bool:
        return False

    @property
    def faults(self) -> list[Callable[[], bool]]:
        often = [self.actor_killed, self.store_flaky, self.garbage_collected, self.shard_revoked, self.nothing]
        return [
            *often,
            *often,
            self.rows_added,
            self.driver_killed,
            self.driver_told_to_stop,
            self.driver_paused,
            self.second_driver,
            self.actor_paused,
            self.node_replaced,
            self.raylet_killed,
            self.store_away,
            self.store_away_for_long,
            self.verified,
            self.merged_in_part,
            self.shard_damaged,
        ]

    def inject(self, minutes: float) -> Counter[str]:
        """Does things to the run for so long, with a driver always there; then waits for its end."""
        counts = Counter[str]()
        end = self._started + 60 * minutes
        while time.monotonic() < end or not self.done or self.live:
            self.reap()
            if not self._drivers and not (self.done and time.monotonic() > end):
                self.start()
                time.sleep(8)
            if time.monotonic() > end:
                time.sleep(1)
                continue
            time.sleep(self._rng.uniform(0.5, 8))
            fault = self._rng.choice(self.faults)
            try:
                happened = fault()
            except psutil.Error:
                happened = False  # it ended meanwhile
            if happened:
                counts[fault.__name__] += 1
                self.say(fault.__name__)
        self.reap()
        return counts

    def check(self) -> None:
        """Every row once, and the bytes of a run to which nothing was done."""
        self.rows_added()
        # What was revoked after the last driver had begun, or was damaged, is generated now.
        self.start()
        while self._drivers:
            time.sleep(1)
            self.reap()
        self.batchgen("gc", self.run)
        print(self.batchgen("verify", self.run))
        rejected = [json.loads(line) for line in self.batchgen("rejected", self.run, "--json").splitlines()]
        if (found := {row["row_index"] for row in rejected}) != set(BAD_ROWS):
            self.complain("rejected are the rows", sorted(found))
        self.batchgen("publish", self.run, "--to", str(self._folder / "published"))
        self._closing.close()
        calm = self._job("calm", str(self._folder / "calm"), slots=64)
        self.batchgen("run", str(calm))
        files = [
            self._folder / name / "data" / "train-00000-of-00001.parquet" for name in ("published", "calm/dataset")
        ]
        if files[0].read_bytes() != files[1].read_bytes():
            self.complain("the dataset is not that of a run without faults", *files)


def main() -> int:
    """0 where nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--bucket", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(folder, options.seed, options.bucket)
    soak.say(f"in {folder}")
    counts = soak.inject(options.minutes)
    soak.check()
    print("\n".join(f"{name:<22}{count:>4}" for name, count in sorted(counts.items())))
    print(f"rows {ROWS}, faults {sum(counts.values())}, complaints {len(soak.complaints)}")
    return 1 if soak.complaints else 0


if __name__ == "__main__":
    raise SystemExit(main())
