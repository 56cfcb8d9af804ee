"""The openai engine against a small HTTP server that answers as it is told; `tests/engine` has the real one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchgen import Job, Stopped, run
from batchgen.distributed.process import allow_open_files
from batchgen.engines.base import Completion, EngineSpec, Request
from batchgen.engines.openai import OpenAIEngine
from batchgen.engines.transport import cause_of
from batchgen.errors import EngineDead, EngineStartError, EngineUnavailable, RowRejected
from tests.faults import ledger
from tests.helpers import chaos_job, untimed
from tests.openaiserver import SECRET, OpenAIServer, openai_server

_SILENCE = b"nothing"


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server() as server:
        yield server


def answered(server: OpenAIServer, raw: tuple[str, bytes], **options: Any) -> Completion:
    """What is made of an answer (type, body) of a server that was as it should be until then."""
    engine = OpenAIEngine(EngineSpec("judge", backend="openai", arguments={"base_url": server.url, **options}))

    async def go() -> Completion:
        await engine.start()
        try:
            server.raw = raw
            return await engine.generate(Request((), {}, seed=1, messages=[{"role": "user", "content": "Hi"}]))
        finally:
            await engine.stop()

    return asyncio.run(go())


def ask(
    server: OpenAIServer, count: int = 1, path: str = "judge", sampling: dict[str, Any] | None = None, **options: Any
):
    """Starts an engine on the server and asks it."""
    arguments = {"base_url": server.url, "max_retries": 2, **options}
    engine = OpenAIEngine(EngineSpec(path, backend="openai", arguments=arguments))

    async def go() -> list[Completion]:
        await engine.start()
        try:
            messages = [{"role": "user", "content": "Is it good?"}]
            request = Request((), sampling or {"max_tokens": 5}, seed=1, messages=messages)
            return await asyncio.gather(*(engine.generate(request) for _ in range(count)))
        finally:
            await engine.stop()

    return asyncio.run(go())


def test_a_conversation_is_completed_and_its_tokens_counted(server: OpenAIServer):
    assert ask(server) == [Completion("A fine answer.", "stop", 7, 3, logprobs=[])]
    assert server.requests[0]["messages"] == [{"role": "user", "content": "Is it good?"}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_that_the_server_tells_apart_are_told_apart_here(server: OpenAIServer, name: str, stream: bool):
    server.told = {name: "Is it? It is."}
    assert ask(server, stream=stream) == [
        Completion("A fine answer.", "stop", 7, 3, logprobs=[], reasoning="Is it? It is.")
    ]


def test_sampling_parameters_go_where_the_server_reads_them(server: OpenAIServer):
    sampling = {"temperature": 0.5, "max_tokens": 9, "top_k": 3, "logprobs": 0, "stop": ["x"]}
    schema = {"type": "object"}
    (completion,) = ask(server, sampling={**sampling, "structured_outputs": {"json": schema}})
    assert completion.logprobs == [-0.5]
    body = server.requests[0]
    assert {name: body[name] for name in ("temperature", "max_tokens", "top_k", "logprobs", "stop")} == {
        "temperature": 0.5,
        "max_tokens": 9,
        "top_k": 3,
        "logprobs": True,
        "stop": ["x"],
    }
    assert body["response_format"]["json_schema"]["schema"] == schema
    ask(server, sampling={"max_tokens": 5, "structured_outputs": {"choice": ["a"]}})
    assert server.requests[1]["structured_outputs"] == {"choice": ["a"]}
    ask(server, sampling={"structured_outputs": {"json": '{"type": "object"}'}})
    assert server.requests[2]["response_format"]["json_schema"]["schema"] == schema, "a schema may be given as text"
    ask(server, sampling={"structured_outputs": {"json_object": True}})
    assert server.requests[3]["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After-Ms": "400"}, 0.4),
        ({"Retry-After": "0.4"}, 0.4),
        ({"Retry-After": "Mon, 30 Nov 2026 12:00:00 GMT"}, 0.3),
        ({"Retry-After": "nan"}, 0.3),
        ({"Retry-After": "-1"}, 0.3),
        ({}, 0.3),
    ],
)
def test_no_request_is_made_for_a_while_after_one_too_many(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], seconds: float
):
    monkeypatch.setattr("batchgen.engines.pace._PAUSE", 0.3)
    server.statuses, server.headers = [429], headers
    arguments = {"base_url": server.url, "max_retries": 0}
    engine = OpenAIEngine(EngineSpec("judge", backend="openai", arguments=arguments))
    request = Request((), {}, seed=1, messages=[{"role": "user", "content": "Hi"}])

    async def go() -> float:
        await engine.start()
        with pytest.raises(EngineUnavailable, match="answers 429") as caught:
            await engine.generate(request)
        refused = time.monotonic()
        assert caught.value.limited
        await engine.generate(request)
        await engine.stop()
        return time.monotonic() - refused

    assert seconds * 0.9 <= asyncio.run(go()) < seconds + 2


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_busy_server_is_asked_again(server: OpenAIServer, status: int):
    server.statuses = [status, status]
    assert ask(server)[0].text == "A fine answer."
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [429, 500, 401, 403])
def test_a_server_that_stays_away_stops_the_run_and_quotes_nothing(server: OpenAIServer, status: int, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server.statuses = [status] * 10
    with pytest.raises(EngineUnavailable) as caught:
        ask(server)
    assert f"answers {status}" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "good" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_server_refuses_rejects_its_row_alone(server: OpenAIServer, status: int):
    server.statuses = [status]
    with pytest.raises(RowRejected, match="refused_by_server"):
        ask(server)


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ({"detail": "Unexpected fields in the request: {'top_k'}"}, "refused_by_server:top_k"),
        ({"detail": [{"loc": ["body", "top_k"], "msg": f"Extra inputs {SECRET}"}]}, "refused_by_server:top_k"),
        ({"detail": f"nothing of it is known, nor is my_top_k_of {SECRET}"}, "refused_by_server"),
        ({"error": {"code": "bad", "message": "top_k"}}, "refused_by_server:bad"),
        (
            {"error": {"code": 400, "message": SECRET, "type": "exceed_context_size_error"}},
            "refused_by_server:exceed_context_size_error",
        ),
        ({"error": {"code": 400, "message": SECRET, "type": "BadRequestError"}}, "refused_by_server"),
        ({"error": {"code": None, "message": SECRET, "type": "invalid_request_error"}}, "refused_by_server"),
        ({"error": {"code": 400, "message": SECRET, "type": f"no name: {SECRET}"}}, "refused_by_server"),
    ],
)
def test_a_parameter_that_only_the_server_s_text_names_is_told(server: OpenAIServer, refusal: dict, reason: str):
    server.statuses, server.refusal = [422], refusal
    with pytest.raises(RowRejected) as caught:
        ask(server, sampling={"max_tokens": 5, "top_k": 3})
    assert caught.value.reason == reason


def test_an_answer_that_a_filter_broke_off_is_none(server: OpenAIServer):
    server.finish = "content_filter"
    with pytest.raises(RowRejected, match="content_filter"):
        ask(server)


PAGE = ("text/html", b"<html>We are back in a minute.</html>")


@pytest.mark.parametrize(
    "raw",
    [
        PAGE,
        ("application/json", b'{"error": {"code": 429, "message": "upstream"}}'),
        ("application/json", b'{"choices": []}'),
        ("application/json", b'{"choices": [{"index": 0, "message": null, "finish_reason": "stop"}]}'),
        ("application/json", b'{"choices": {"index": 0}}'),
        ("application/json", b'{"choices": [7]}'),
        ("application/json", b'{"choices": [{"index": 0, "message": "4", "finish_reason": "stop"}]}'),
        ("application/json", b'{"choices": [{"index": 0, "message": {"content": 4}, "finish_reason": "stop"}]}'),
        ("application/json", b'{"choices": ['),
        ("application/json", b""),
        ("application/json", b"null"),
    ],
)
def test_an_answer_without_a_completion_is_the_server_s_fault(server: OpenAIServer, raw: tuple[str, bytes]):
    with pytest.raises(EngineUnavailable, match=f"{server.url} answers with") as caught:
        answered(server, raw)
    assert (caught.value.perhaps_row, caught.value.final) == ("no_completion", False)


@pytest.mark.parametrize("raw", [PAGE, ("application/json", b"[1]"), ("application/json", b"{")])
def test_an_address_that_is_no_api_s_is_said_at_once(server: OpenAIServer, raw: tuple[str, bytes]):
    server.raw = raw
    with pytest.raises(EngineStartError, match=f"{server.url} answers, but not as an API does") as caught:
        ask(server)
    assert caught.value.final


def test_an_engine_that_is_stopped_rejects_no_row(server: OpenAIServer):
    async def go() -> None:
        engine = OpenAIEngine(EngineSpec("judge", backend="openai", arguments={"base_url": server.url}))
        await engine.start()
        await engine.stop()
        await engine.generate(Request((), {}, seed=1, messages=[{"role": "user", "content": "Hi"}]))

    with pytest.raises(EngineDead, match="the engine is stopped"):
        asyncio.run(go())


@pytest.mark.parametrize("thinking", [[{"type": "text", "text": "A sum."}], "A sum."])
def test_a_message_in_parts_is_its_text(server: OpenAIServer, thinking: Any):
    parts = [{"type": "thinking", "thinking": thinking}, {"type": "text", "text": "It is "}, None, {"text": "4."}]
    server.told = {"content": parts}
    completion = ask(server)[0]
    assert (completion.text, completion.reasoning) == ("It is 4.", "A sum.")


@pytest.mark.parametrize(
    "odd",
    [
        {"usage": {}},
        {"usage": {"prompt_tokens": "7", "completion_tokens": -3}},
        {"usage": {"prompt_tokens": [7], "completion_tokens": 10**30}},
        {"usage": 7},
        {"logprobs": 7},
        {"logprobs": {"content": 7}},
        {"logprobs": {"content": [{"token": "4", "logprob": -0.5}, {"token": "4", "logprob": None}, 7]}},
        {"finish_reason": ["stop"]},
        {"finish_reason": None},
        {"message": {"content": "4", "reasoning": True}},
        {"message": {"content": "4", "reasoning_content": [7]}},
        {"message": {"content": [{"type": "thinking", "thinking": 7}, 7, {"text": "4"}]}},
    ],
)
def test_of_an_answer_what_is_of_no_use_is_left_out(server: OpenAIServer, odd: dict[str, Any]):
    """The client library hands on whatever there is; what no column can hold would end the run."""
    choice = {"index": 0, "message": {"content": "4"}, "finish_reason": "stop", **odd}
    message = json.dumps({"usage": choice.pop("usage", {}), "choices": [choice]})
    found = answered(server, ("application/json", message.encode()))
    assert found == Completion("4", "stop", 0, 0, logprobs=[])


@pytest.mark.parametrize("finish", ["abort", "error", "insufficient_system_resource"])
def test_an_answer_that_the_server_broke_off_is_asked_for_again(server: OpenAIServer, finish: str):
    server.finish = finish
    with pytest.raises(EngineUnavailable, match=f"{server.url} broke a completion off: {finish}") as caught:
        ask(server)
    assert caught.value.perhaps_row == finish
    assert not caught.value.final


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("model_length", "length"), ("max_tokens", "length"), ("length", "length"), ("stop", "stop"), (None, "stop")],
)
def test_an_answer_that_is_cut_says_so_in_one_way(server: OpenAIServer, finish: str | None, reason: str):
    server.finish = finish
    assert ask(server)[0].finish_reason == reason


def test_arguments_of_the_chat_template_are_sent(server: OpenAIServer):
    template = {"enable_thinking": False}
    spec = EngineSpec("judge", backend="openai", arguments={"base_url": server.url}, chat_template_kwargs=template)

    async def go() -> None:
        engine = OpenAIEngine(spec)
        await engine.start()
        await engine.generate(Request((), {"max_tokens": 5}, seed=1, messages=[{"role": "user", "content": "Hi"}]))
        await engine.stop()

    asyncio.run(go())
    assert server.requests[0]["chat_template_kwargs"] == template


def test_a_server_that_has_another_name_for_the_limit_is_given_that(server: OpenAIServer):
    server.unknown = "max_tokens"
    assert [completion.text for completion in ask(server, count=9)] == ["A fine answer."] * 9
    assert [body["max_completion_tokens"] for body in server.requests if "max_tokens" not in body] == [5] * 9


def test_a_server_that_takes_no_strict_schema_is_given_a_loose_one(server: OpenAIServer):
    server.loose, server.unknown = True, "max_tokens"
    sampling = {"max_tokens": 5, "structured_outputs": {"json": {"type": "object"}}}
    assert [completion.text for completion in ask(server, sampling=sampling, count=9)] == ["A fine answer."] * 9
    taken = [body for body in server.requests if "max_tokens" not in body]
    loose = [body for body in taken if not body["response_format"]["json_schema"]["strict"]]
    assert len(loose) == 9
    assert {body["max_completion_tokens"] for body in loose} == {5}


def test_a_server_that_takes_no_schema_rejects_the_row(server: OpenAIServer):
    server.unknown = "response_format"
    with pytest.raises(RowRejected) as caught:
        ask(server, sampling={"max_tokens": 5, "structured_outputs": {"json": {"type": "object"}}})
    assert caught.value.reason == "refused_by_server:unsupported_parameter:response_format"


def test_a_refusal_has_the_server_s_names_for_what_is_wrong_and_not_its_words(server: OpenAIServer):
    server.unknown = "temperature"
    with pytest.raises(RowRejected) as caught:
        ask(server, sampling={"max_tokens": 5, "temperature": 0.1})
    assert caught.value.reason == "refused_by_server:unsupported_parameter:temperature"


def test_the_key_comes_from_the_environment(server: OpenAIServer, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", SECRET)
    ask(server, api_key_env="JUDGE_API_KEY")
    assert server.keys == [f"Bearer {SECRET}"]
    monkeypatch.delenv("JUDGE_API_KEY")
    ask(server, api_key_env="JUDGE_API_KEY")
    assert SECRET not in str(server.keys[1])


def test_requests_keep_to_the_limit(server: OpenAIServer):
    ask(server, count=12, max_concurrency=3)
    assert server.most <= 3


def test_as_many_requests_as_the_limit_says_are_asked_at_once():
    """The client library has 1,000 connections by itself."""
    allow_open_files()
    count = 1100
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        answering.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = {"object": "list", "data": [{"id": "judge", "object": "model"}]}
                if head.startswith(b"POST"):
                    asked += 1
                    if asked == count:
                        all_there.set()
                    await all_there.wait()
                    body = {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "Yes."}}]}
                data = json.dumps(body).encode()
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
                writer.write(head + str(len(data)).encode() + b"\r\n\r\n" + data)
        writer.close()

    async def go() -> list[Completion]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=count)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        arguments = {"base_url": url, "max_concurrency": count, "max_retries": 0, "timeout": 60}
        engine = OpenAIEngine(EngineSpec("judge", backend="openai", arguments=arguments))
        await engine.start()
        request = Request((), {"max_tokens": 5}, seed=1, messages=[{"role": "user", "content": "Is it good?"}])
        try:
            return await asyncio.gather(*(engine.generate(request) for _ in range(count)))
        finally:
            await engine.stop()
            server.close()
            await asyncio.gather(*filter(None, answering))

    answering: list[asyncio.Task[None] | None] = []
    all_there = asyncio.Event()
    assert {completion.text for completion in asyncio.run(go())} == {"Yes."}
    assert asked == count


@pytest.mark.parametrize("status", [400, 404, 422])
@pytest.mark.parametrize(("models", "served"), [(["judge"], "judge"), ([], "none that it lists")])
def test_a_model_that_the_server_does_not_have_is_named(
    server: OpenAIServer, status: int, models: list[str], served: str
):
    server.statuses, server.models = [status], models
    with pytest.raises(EngineStartError, match=rf"serves no model 'other'; it serves: {served}$") as caught:
        ask(server, path="other")
    assert caught.value.final
    (asked,) = server.requests
    assert (asked["model"], asked["max_tokens"]) == ("other", 1)


def test_a_model_that_a_server_takes_and_does_not_list_is_one(server: OpenAIServer):
    """A gateway's patterns, other names of a model, `transformers serve` with a folder."""
    assert ask(server, path="any/other")[0].text == "A fine answer."
    server.statuses = [503]
    assert ask(server, path="any/other")[0].text == "A fine answer.", "that is no word on the model"
    server.unknown = "max_tokens"
    assert ask(server, path="any/other")[0].text == "A fine answer.", "nor is that"


def test_a_gateway_that_refuses_a_wrong_key_with_400_is_told_so(server: OpenAIServer):
    server.listing = [400]
    with pytest.raises(EngineStartError, match=r"answers 400; is OPENAI_API_KEY set and right\?"):
        ask(server)


@pytest.mark.parametrize(
    ("scheme", "answer", "cause"),
    [
        ("http", None, "connection refused"),
        ("http", b"", "connection reset by peer"),
        ("http", b"SSH-2.0-OpenSSH_9.7\r\n\r\n", "it does not speak HTTP"),
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "TLS: wrong version number"),
        ("http", _SILENCE, "no answer in time"),
    ],
    ids=["nobody", "hangs up", "another protocol", "no TLS", "silence"],
)
@pytest.mark.parametrize("at", ["its start", "a row"])
def test_why_a_server_is_not_reached_is_told(
    monkeypatch: pytest.MonkeyPatch, scheme: str, answer: bytes | None, cause: str, at: str
):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer == _SILENCE:
            await reader.read()
        elif answer:
            writer.write(answer)
            with contextlib.suppress(ConnectionError):
                await reader.read()  # what is not read as it closes has the answer taken back
        else:
            reset = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.close()
        talked.set()

    async def go() -> None:
        there = await asyncio.start_server(talk, "127.0.0.1", 0)
        url = f"{scheme}://127.0.0.1:{there.sockets[0].getsockname()[1]}/v1"
        if answer is None:
            there.close()
        options = {"base_url": url, "max_retries": 0, "timeout": 0.5}
        engine = OpenAIEngine(EngineSpec("judge", backend="openai", arguments=options))
        late = f"{url} has not answered within 0.5 s" if (at, answer) == ("a row", _SILENCE) else None
        with monkeypatch.context() as patch:
            if at == "a row":
                patch.setattr(OpenAIEngine, "_look", _nothing)
            with pytest.raises(EngineUnavailable) as caught:
                await engine.start()
                await engine.generate(Request((), {}, seed=1, messages=[{"role": "user", "content": "Hi"}]))
        await engine.stop()
        if answer is not None:
            await talked.wait()
        there.close()
        assert str(caught.value) == (late or f"{url} cannot be reached ({cause})")

    talked = asyncio.Event()
    asyncio.run(go())


async def _nothing(_: object) -> None: ...


def test_a_host_that_does_not_exist_is_told_and_what_has_no_known_cause_by_its_kind():
    def raised(cause: Exception) -> Exception:
        try:
            raise RuntimeError("quoting") from cause
        except RuntimeError as error:
            return error

    assert cause_of(raised(socket.gaierror(-2, "Name or service not known"))) == "there is no such host"
    assert cause_of(raised(ValueError("quoting"))) == "RuntimeError"
    assert cause_of(raised(OSError(errno.EMFILE, "quoting"))) == "too many open files"


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_at_the_start_is_not_tried_again(server: OpenAIServer, tmp_path: Path, status: int):
    server.listing = [status] * 100
    with pytest.raises(EngineStartError, match=f"^{server.url} answers {status}; is OPENAI_API_KEY set and right"):
        run(judged(server, tmp_path), in_process=True)
    assert len(server.listing) == 99


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is out of reach is looked at often, and so are engines."""
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.1,))
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.05)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_comes_up_after_the_run_is_waited_for(server: OpenAIServer, tmp_path: Path, status: int):
    ask(server)  # the client library takes a second or more to import, and nothing is told meanwhile
    server.listing = [status] * 30
    notes: list[str] = []
    # It waits for longer than an engine's start may take.
    job = judged(server, tmp_path, start_seconds=2)
    result = run(job, in_process=True, watch=lambda status: notes.extend(status.notes))
    assert (result.progress.ok, server.listing) == (20, [])
    assert [untimed(note) for note in notes] == [f"engine 0 waits: {server.url} answers {status}"]
    ledger.record("model server up after the run", 1, tmp_path / "run", 20)


@pytest.mark.usefixtures("often")
def test_a_server_that_takes_connections_and_is_not_up_yet_is_waited_for(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("batchgen.engines.openai._LIST_SECONDS", 0.3)
    server.listing = [0] * 3
    notes: list[str] = []
    result = run(judged(server, tmp_path), in_process=True, watch=lambda status: notes.extend(status.notes))
    assert result.progress.ok == 20
    assert [untimed(note) for note in notes] == [f"engine 0 waits: {server.url} cannot be reached (no answer in time)"]


@pytest.mark.usefixtures("often")
def test_a_server_that_never_comes_up_fails_the_run_after_one_wait(server: OpenAIServer, tmp_path: Path):
    server.listing = [503] * 1000
    waits = r" answers 503; it has been like this for 1 s \(outage_seconds\)$"
    with pytest.raises(EngineStartError, match=f"^{server.url}{waits}"):
        run(judged(server, tmp_path, outage_seconds=1), in_process=True)
    assert len(server.listing) > 980


@pytest.mark.usefixtures("often")
def test_a_server_that_has_been_there_stops_the_run_resumable(server: OpenAIServer, tmp_path: Path):
    server.statuses = [200] * 10 + [401] * 1000
    tree = judged(server, tmp_path, shard_rows=4).tree()
    tree["model"]["engine"] |= {"max_concurrency": 1}  # one row after the other, so that shards are done
    with pytest.raises(Stopped, match="401"):
        run(Job.of(tree), in_process=True)
    assert list((tmp_path / "run").glob("commits/*/0000.json"))
    server.listing, server.statuses = [503] * 1000, []
    with pytest.raises(Stopped, match=r"answers 503; it has been like this for 1 s"):
        run(judged(server, tmp_path, shard_rows=4, outage_seconds=1), in_process=True)
    server.listing = []
    assert run(judged(server, tmp_path, shard_rows=4), in_process=True).progress.ok == 20


def judged(server: OpenAIServer, tmp_path: Path, **changes: Any) -> Job:
    """A job whose only step runs on the server."""
    judge = {"path": "judge", "backend": "openai", "engine": {"base_url": server.url, "max_retries": 0}}
    return chaos_job(
        tmp_path / "run",
        source={"rows": [{"instruction": f"question {i}"} for i in range(20)]},
        model=judge,
        steps=[{"task": "text_generation"}],
        merge={"exact": False, "near": False},
        **changes,
    )


def test_a_server_that_is_away_for_a_while_is_waited_for(server: OpenAIServer, tmp_path: Path):
    server.statuses = [503] * 30
    notes: list[str] = []
    result = run(judged(server, tmp_path), in_process=True, watch=lambda status: notes.extend(status.notes))
    assert (result.progress.ok, result.progress.rejected) == (20, 0)
    assert [untimed(note) for note in notes] == [f"engine 0 waits: {server.url} answers 503"]
    ledger.record("model server away for a while", 1, tmp_path / "run", 20)


def test_a_server_that_stays_away_stops_the_run_which_goes_on_later(server: OpenAIServer, tmp_path: Path):
    server.statuses = [503] * 1000
    with pytest.raises(Stopped, match=r"; it has been like this for 1 s \(outage_seconds\)"):
        run(judged(server, tmp_path, outage_seconds=1), in_process=True)
    server.statuses = []
    assert run(judged(server, tmp_path), in_process=True).progress.ok == 20
    ledger.record("model server stays away", 1, tmp_path / "run", 20)


def test_a_server_that_takes_requests_and_does_not_answer_is_waited_for(server: OpenAIServer, tmp_path: Path):
    server.statuses = [0] * 30
    notes: list[str] = []
    job = judged(server, tmp_path, stall_seconds=2)
    tree = job.tree()
    tree["model"]["engine"] |= {"timeout": 0.5, "max_retries": 8}
    result = run(Job.of(tree), in_process=True, watch=lambda status: notes.extend(status.notes))
    assert (result.progress.ok, result.progress.rejected) == (20, 0)
    assert [untimed(note) for note in notes] == [f"engine 0 waits: {server.url} has not answered within 0.5 s"]


@pytest.mark.parametrize("last", [429, 0], ids=["limited to the end", "no answer in the end"])
def test_a_request_that_ran_out_of_time_because_it_was_not_let_in_says_so(server: OpenAIServer, last: int):
    server.statuses = [429, 429, *[last] * 100]
    with pytest.raises(EngineUnavailable) as caught:
        ask(server, timeout=4, max_retries=8)
    what = "has not answered within 4 s" if last == 0 else "answers 429"
    assert (str(caught.value), caught.value.limited) == (f"{server.url} {what}", last == 429)
    assert caught.value.perhaps_row == ("timeout" if last == 0 else None)


def test_a_request_that_ran_out_of_time_before_it_was_made_is_not_to_blame(server: OpenAIServer):
    server.statuses, server.headers = [429], {"Retry-After": "30"}
    arguments = {"base_url": server.url, "max_retries": 0, "timeout": 0.5}
    engine = OpenAIEngine(EngineSpec("judge", backend="openai", arguments=arguments))
    request = Request((), {}, seed=1, messages=[{"role": "user", "content": "Hi"}])

    async def go() -> None:
        await engine.start()
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match="answers 429") as caught:
                await engine.generate(request)
            assert caught.value.limited
        await engine.stop()

    asyncio.run(go())
    assert len(server.requests) == 1


def test_a_server_that_is_asked_less_than_it_could_is_told_of(server: OpenAIServer, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.05)
    ask(server)  # the client library takes a second or more to import
    server.statuses, server.headers = [429] * 3, {"Retry-After": "0.2"}
    notes: list[str] = []
    tree = judged(server, tmp_path).tree()
    tree["model"]["engine"] |= {"max_concurrency": 4, "max_retries": 8}
    result = run(Job.of(tree), in_process=True, watch=lambda status: notes.extend(status.notes))
    assert result.progress.ok == 20
    (note,) = notes
    assert re.fullmatch(rf"engine 0: {server.url} answers 429: it is asked [12] of 4 at once", note)


def test_a_row_that_a_server_s_moderation_forbids_is_rejected_alone(server: OpenAIServer, tmp_path: Path):
    """By the same status as a key that has no right to the model."""
    server.poison, server.poisoned = "question 7", 403
    result = run(judged(server, tmp_path), in_process=True)
    assert (result.progress.ok, dict(result.progress.reasons)) == (19, {"refused_by_server:403": 1})
    (tried,) = [body for body in server.requests if body["messages"] == [{"role": "user", "content": "Hi"}]]
    assert tried["max_tokens"] == 1


def test_parameters_that_a_server_forbids_are_no_row_s_fault(server: OpenAIServer):
    server.poison, server.poisoned = "Hi", 403
    server.statuses = [403]
    with pytest.raises(EngineUnavailable, match="answers 403; is OPENAI_API_KEY set and right") as caught:
        ask(server, sampling={"max_tokens": 5, "min_tokens": 3, "temperature": 0.5})
    assert caught.value.final
    tried = server.requests[-1]
    assert (tried["temperature"], tried["max_tokens"], "min_tokens" in tried) == (0.5, 1, False)


def test_a_key_that_is_refused_on_the_way_is_not_waited_for(server: OpenAIServer, tmp_path: Path):
    server.statuses = [200] * 5 + [401] * 1000
    with pytest.raises(Stopped, match="answers 401; is OPENAI_API_KEY set and right"):
        run(judged(server, tmp_path), in_process=True)


@pytest.mark.parametrize(("status", "reason"), [(500, "500"), (0, "timeout")])
def test_a_row_at_which_the_server_fails_again_and_again_is_rejected_alone(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, reason: str
):
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.05,))
    server.poisoned = status
    tree = judged(server, tmp_path).tree()
    tree["model"]["engine"] |= {"timeout": 0.3, "max_concurrency": 2}
    tree["source"]["rows"] = [{"instruction": f"question {i}."} for i in range(300)]
    server.poison = "question 7."
    result = run(Job.of(tree), in_process=True)
    assert (result.progress.ok, dict(result.progress.reasons)) == (299, {f"refused_by_server:{reason}": 1})
