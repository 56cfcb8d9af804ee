"""A small OpenAI-compatible server over real HTTP, which answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "sk-canary-0815"


class _Http(ThreadingHTTPServer):
    request_queue_size = 128


class OpenAIServer:
    """An OpenAI-compatible server.

    `statuses` are given to the next requests (0: no answer), then 200, and `listing` to those for its models; `raw`
    is what it answers in place of either; `headers` are those of a 429; `models` are those that it lists; `unknown` is
    a parameter that it refuses, `refusal` what it says with a status that is not 200, `loose` whether it refuses
    schemas that are to be followed to the letter, and `poison` a text at which it fails; `answers` makes a text of
    messages. Answers that are to come in pieces do so with `pause` seconds before each, and without those that `lost`
    says, as counted from the end.
    """

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.listing: list[int] = []
        self.models = ["judge"]
        self.unknown: str | None = None
        self.refusal: dict[str, Any] | None = None
        self.loose = False
        self.poison: str | None = None
        self.poisoned = 500
        self.closing = threading.Event()
        self.told: dict[str, Any] = {}
        self.answers: Callable[[list[Any]], str] = lambda messages: "A fine answer."
        self.finish: str | None = "stop"
        self.pause = 0.0
        self.lost: list[int] = []
        self.raw: tuple[str, bytes] | None = None
        self.headers: dict[str, str] = {}
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                status = server.listing.pop(0) if server.listing else 200
                if status == 0:
                    server.closing.wait(20)
                    return
                if server.raw is not None:
                    self.send_raw(*server.raw)
                    return
                served = [{"id": name, "object": "model"} for name in server.models]
                self.send(status, {"object": "list", "data": served})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.at_once += 1
                    server.most = max(server.most, server.at_once)
                    server.requests.append(body)
                    server.keys.append(self.headers.get("Authorization"))
                    status = server.statuses.pop(0) if server.statuses else 200
                threading.Event().wait(0.01)
                with server.lock:
                    server.at_once -= 1
                strict = body.get("response_format", {}).get("json_schema", {}).get("strict")
                if server.unknown in body or (server.loose and strict):
                    param = server.unknown if server.unknown in body else "response_format"
                    refusal = {"message": SECRET, "code": "unsupported_parameter", "param": param}
                    self.send(400, server.refusal or {"error": refusal})
                    return
                if server.poison and server.poison in str(body["messages"]):
                    status = server.poisoned
                if status == 0:
                    server.closing.wait(20)
                    return
                if status != 200:
                    quoting = {"error": {"message": f"refused, and quoting {body['messages']} {SECRET}"}}
                    self.send(status, server.refusal or quoting)
                    return
                if server.raw is not None:
                    self.send_raw(*server.raw)
                    return
                message = {"role": "assistant", "content": server.answers(body["messages"]), **server.told}
                choice = {"index": 0, "message": message, "finish_reason": server.finish, "logprobs": None}
                if body.get("logprobs"):
                    choice["logprobs"] = {
                        "content": [{"token": "A", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
                    }
                usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
                answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "judge"}
                if body.get("stream"):
                    counts = body.get("stream_options", {}).get("include_usage")
                    self.send_pieces({**answer, "object": "chat.completion.chunk"}, choice, usage if counts else None)
                    return
                self.send(200, {**answer, "choices": [choice] * body.get("n", 1), "usage": usage})

            def send(self, status: int, data: dict[str, Any]) -> None:
                self.send_raw("application/json", json.dumps(data).encode(), status)

            def send_pieces(self, head: dict[str, Any], choice: dict[str, Any], usage: dict[str, Any] | None) -> None:
                """Four letters of a text at a time, each with a token's log-probability."""
                deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
                for name in ("reasoning", "reasoning_content", "content"):
                    text = choice["message"].get(name) or ""
                    deltas += [{name: text[start : start + 4]} for start in range(0, len(text), 4)]
                choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
                choices[-1]["logprobs"] = choice["logprobs"]
                choices.append({"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]})
                events = [json.dumps({**head, "choices": [each], "usage": None}) for each in choices]
                if usage is not None:
                    events.append(json.dumps({**head, "choices": [], "usage": usage}))
                events.append("[DONE]")
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream; charset=utf-8")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                lost = server.lost.pop(0) if server.lost else 0
                for event in events[: len(events) - lost]:
                    threading.Event().wait(server.pause)
                    self.send_chunk(f": a comment\r\ndata: {event}\r\n\r\n".encode())
                if lost:
                    self.close_connection = True
                else:
                    self.send_chunk(b"")

            def send_chunk(self, data: bytes) -> None:
                """In two writes, as a network may cut anywhere."""
                whole = b"%x\r\n%s\r\n" % (len(data), data)
                for part in (whole[:9], whole[9:]):
                    self.wfile.write(part)
                    self.wfile.flush()

            def send_raw(self, kind: str, raw: bytes, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(raw)))
                for name, value in server.headers.items() if status == 429 else ():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

        self.http = _Http(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@contextmanager
def openai_server() -> Iterator[OpenAIServer]:
    """A server for as long as the context lasts."""
    server = OpenAIServer()
    try:
        yield server
    finally:
        server.closing.set()
        server.http.shutdown()
        server.http.server_close()
