"""What a request to an OpenAI-compatible server costs this process, against the client library's own transport.

A server in a process of its own answers every request after a fixed time. The engine of both sides is the same; one
has its connections from aiohttp, the other from the library's default, without its limit. The sides take turns.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import openai

from batchgen.engines.base import EngineSpec, Request
from batchgen.engines.openai import OpenAIEngine

IN_FLIGHT = (64, 512)
REQUESTS = 2048
ANSWER_SECONDS = 0.1
MODEL = "tiny"
_MESSAGE = {"role": "assistant", "content": "A fine answer."}
_COMPLETION = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [{"index": 0, "finish_reason": "stop", "message": _MESSAGE}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
}


async def serve() -> None:
    """Answers on a port that it prints, until it is killed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length:")[2].split(b"\r\n")[0]
                body: dict[str, Any] = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
                if length:
                    await reader.readexactly(int(length))
                    await asyncio.sleep(ANSWER_SECONDS)
                    body = _COMPLETION
                data = json.dumps(body).encode()
                kind = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
                writer.write(kind + str(len(data)).encode() + b"\r\n\r\n" + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def served() -> Iterator[str]:
    """The base URL of a server in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


async def requests(url: str, in_flight: int, count: int) -> tuple[float, float]:
    """(requests a second, milliseconds of this process's time a request), once all connections are open."""
    arguments = {"base_url": url, "max_concurrency": in_flight}
    engine = OpenAIEngine(EngineSpec(MODEL, backend="openai", arguments=arguments))
    await engine.start()

    async def ask(number: int) -> None:
        messages = [{"role": "user", "content": f"Is {number} good?"}]
        await engine.generate(Request((), {"max_tokens": 16}, seed=number, key=str(number), messages=messages))

    try:
        await asyncio.gather(*map(ask, range(in_flight)))
        began, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*map(ask, range(count)))
        return count / (time.perf_counter() - began), (time.process_time() - used) / count * 1000
    finally:
        await engine.stop()


def sides(url: str, in_flight: int, count: int) -> dict[str, tuple[float, float]]:
    """What `requests` gives for each side."""

    class Unlimited(openai.DefaultAsyncHttpxClient):
        def __init__(self, limits: Any) -> None:
            super().__init__(limits=type(limits)(max_connections=None))

    ours = asyncio.run(requests(url, in_flight, count))
    with mock.patch("openai.DefaultAioHttpClient", Unlimited):
        return {"aiohttp": ours, "default": asyncio.run(requests(url, in_flight, count))}


def measure(repeats: int) -> dict[str, Any]:
    """Medians, and ratios pair by pair."""
    found: dict[str, Any] = {}
    with served() as url:
        for in_flight in IN_FLIGHT:
            pairs = [sides(url, in_flight, REQUESTS) for _ in range(repeats)]
            ratios = [pair["aiohttp"][0] / pair["default"][0] for pair in pairs]
            found[f"{in_flight} in flight"] = {
                "ratio_median": round(statistics.median(ratios), 2),
                "ratios": [round(ratio, 2) for ratio in ratios],
                **{
                    name: {
                        "requests_per_second": round(statistics.median(pair[name][0] for pair in pairs)),
                        "milliseconds_per_request": round(statistics.median(pair[name][1] for pair in pairs), 2),
                    }
                    for name in ("aiohttp", "default")
                },
            }
    return {"requests": REQUESTS, "answer_seconds": ANSWER_SECONDS, **found}


if __name__ == "__main__":
    asyncio.run(serve())
