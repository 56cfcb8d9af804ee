"""Fixtures that are dear: one vLLM engine for the whole session."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from batchgen.engines import build_engine
from batchgen.engines.base import Engine, EngineSpec
from tests.s3server import S3Server, environment, s3_server

# Ray's workers give way to everything else; beside tests that keep every core busy they would hardly run at all.
os.environ.setdefault("RAY_worker_niceness", "0")


# xdist's own groups do nothing here: pytest 9.2 and xdist 3.8 lose the group's name on the way.
ON_ONE_ENGINE = {
    "tests/contract/test_engine.py",
    "tests/engine/test_rewards.py",
    "tests/engine/test_serve.py",
    "tests/engine/test_vllm.py",
}
# Ten runs of a minute that share nothing: in one process they would go on alone when all others have ended.
EACH_ALONE = {"tests/faults/test_kill.py"}
# A minute and more with few tests. Begun last, as files with few are, they would go on alone at the end.
BEGUN_FIRST = (
    "tests/faults/test_kill_vllm.py",
    "tests/cluster/test_nodes.py",
    "tests/engine/test_two_engines.py",
    "tests/cluster/test_autoscaling.py",
)


def scope_of(nodeid: str) -> str:
    """What a test runs in one process with: its file, mostly."""
    file = nodeid.partition("::")[0]
    if file in EACH_ALONE:
        return nodeid
    return "one engine" if file in ON_ONE_ENGINE else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sizes = Counter(scope_of(item.nodeid) for item in items)
    place = {file: number for number, file in enumerate(BEGUN_FIRST)}
    items.sort(key=lambda item: (place.get(item.nodeid.partition("::")[0], len(place)), -sizes[scope_of(item.nodeid)]))


class ByFile(LoadFileScheduling):
    """A file's tests run in one process, most files'; so do all tests that share the session's vLLM engine."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # tests are in their order already

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


class Recorded(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@pytest.fixture(autouse=True)
def nothing_ends_unseen() -> Iterator[None]:
    """Fails a test after which an event loop tells of an error that nobody asked for: its user would see it, too."""
    recorded = Recorded()
    logger = logging.getLogger("asyncio")
    logger.addHandler(recorded)
    yield
    logger.removeHandler(recorded)
    assert recorded.messages == []


class LoopThread:
    """An event loop in a thread of its own: an engine lives on one loop as long as it lives."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any], timeout: float = 300) -> Any:
        """Runs a coroutine on the loop and returns its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def close(self) -> None:
        """Stops the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def vllm_engine(loop_thread: LoopThread) -> Iterator[Engine]:
    """A started vLLM engine on the embedded model."""
    engine = build_engine(EngineSpec("embedded", arguments={"max_model_len": 2048, "max_num_seqs": 32}, seed=11))
    loop_thread.run(engine.start())
    yield engine
    loop_thread.run(engine.stop())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server of buckets, to which the environment leads."""
    with s3_server() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        yield server
