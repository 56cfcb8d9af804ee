"""Answers of a model server that come in pieces, and such as end in their midst."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchgen import Job, run
from batchgen.engines.base import Completion
from batchgen.engines.streamed import Pieces
from batchgen.errors import EngineUnavailable, RowRejected
from tests.openaiserver import SECRET, OpenAIServer, openai_server
from tests.unit.test_openai import answered, ask, judged

WHOLE = Completion("A fine answer: żółć.", "stop", 7, 3, logprobs=[])


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server() as server:
        server.answers = lambda messages: WHOLE.text
        yield server


def event(delta: Any = None, reason: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason, **more.pop("choice", {})}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


def joined(*parts: bytes) -> tuple[int, dict[str, Any]]:
    pieces = Pieces()
    for part in parts:
        pieces.add(part)
    return pieces.answer()


def test_an_answer_in_pieces_is_the_one_that_would_have_come_in_one(server: OpenAIServer):
    assert ask(server) == ask(server, stream=True) == [WHOLE]
    asked, streamed = server.requests
    assert streamed == {**asked, "stream": True, "stream_options": {"include_usage": True}}


def test_log_probabilities_come_in_pieces_too(server: OpenAIServer):
    (completion,) = ask(server, sampling={"logprobs": 0}, stream=True)
    assert completion.logprobs == [-0.5]


def test_pieces_may_come_for_longer_than_the_wait_for_each(server: OpenAIServer):
    server.pause = 0.05
    began = time.monotonic()
    assert ask(server, stream=True, timeout=5.0) == [WHOLE]
    assert time.monotonic() - began >= 8 * server.pause, "it did come in pieces"


def test_pieces_that_come_for_too_long_are_given_up_as_a_whole(server: OpenAIServer):
    server.pause = 0.2
    with pytest.raises(EngineUnavailable, match=r"has not answered within 0\.5 s"):
        ask(server, stream=True, timeout=0.5)


@pytest.mark.parametrize("lost", [1, 3, 6])
def test_a_stream_that_is_cut_is_asked_for_again(server: OpenAIServer, lost: int):
    server.lost = [lost, lost]
    assert ask(server, stream=True) == [WHOLE]
    assert len(server.requests) == 3


def test_a_stream_that_is_cut_each_time_is_the_server_s_fault(server: OpenAIServer):
    server.lost = [2] * 3
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        ask(server, stream=True)


def test_a_server_that_knows_no_streams_may_answer_in_one_piece(server: OpenAIServer):
    choice = {"message": {"role": "assistant", "content": WHOLE.text}, "finish_reason": "stop"}
    whole = {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    assert answered(server, ("application/json", json.dumps(whole).encode()), stream=True) == WHOLE


@pytest.mark.parametrize("named", [True, False])
def test_a_server_that_does_not_count_on_request_is_not_asked_to(server: OpenAIServer, named: bool):
    server.unknown = "stream_options"
    if not named:
        server.refusal = {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]}
    (completion,) = ask(server, stream=True)
    assert (completion.text, completion.output_tokens) == (WHOLE.text, 0)
    assert ["stream_options" in request for request in server.requests] == [True, False]
    assert all(request["stream"] for request in server.requests)


@pytest.mark.parametrize(("status", "error"), [(429, EngineUnavailable), (500, EngineUnavailable), (400, RowRejected)])
def test_a_status_is_a_status_with_streams_too(server: OpenAIServer, status: int, error: type[Exception]):
    server.statuses = [status] * 3
    with pytest.raises(error) as raised:
        ask(server, stream=True)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("status", [504, 524])
def test_a_gateway_that_waits_no_longer_is_told_what_may_help(server: OpenAIServer, status: int):
    for stream, hint in ((False, r"; if .* engine: {stream: true} may help"), (True, "")):
        server.statuses = [status] * 3
        with pytest.raises(EngineUnavailable, match=rf"answers {status}{hint}$"):
            ask(server, stream=stream)


def test_a_run_whose_judge_streams(server: OpenAIServer, tmp_path: Path):
    server.lost = [0, 5, 0, 1]
    tree = judged(server, tmp_path).tree()
    tree["model"]["engine"] |= {"stream": True, "max_retries": 2}
    result = run(Job.of(tree), in_process=True)
    assert (result.progress.ok, result.progress.reasons) == (20, {})
    assert len(server.requests) == 22


def test_what_is_said_in_typed_parts_stays_typed():
    status, answer = joined(
        event({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]}),
        event({"content": "So "}),
        event({"content": "be it."}, "stop"),
    )
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
        {"type": "text", "text": "So "},
        {"type": "text", "text": "be it."},
    ]


def test_of_several_answers_the_first_is_taken():
    _, answer = joined(
        event({"content": "a"}), event({"content": "x"}, choice={"index": 1}), event({"content": "b"}, "length")
    )
    assert answer["choices"][0]["message"]["content"] == "ab"
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (b"", "error"),
        (b"data: [DONE]\n\n", None),
        (b"data: [DONE]", None),
        (b"data: {broken\n\ndata: [DONE]\n\n", "error"),
        (b"data: " + b"[" * 100_000 + b"\n\ndata: [DONE]\n\n", "error"),
        (event({}, "stop"), "stop"),
        (b"data: 3\n\n" + event({}, "stop"), "stop"),
        (b'data: {"choices": 3}\n\n' + event({}, "stop"), "stop"),
        (b'data: {"choices": [3, {"delta": 3, "logprobs": 3}]}\n\n' + event({}, "stop"), "stop"),
    ],
)
def test_what_ends_in_its_midst_says_so(end: bytes, reason: str | None):
    status, answer = joined(event({"content": "a"}), end)
    assert (status, answer["choices"][0]["finish_reason"]) == (200, reason)
    assert answer["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize(
    ("error", "status"),
    [({"code": 503, "message": "busy"}, 503), ({"code": "odd"}, 500), ({"code": 200}, 500), ("busy", 500)],
)
def test_an_error_in_the_midst_is_an_error(error: Any, status: int):
    given, answer = joined(event({"content": "a"}), event(error=error), event({}, "error"))
    assert given == status
    assert answer == {"error": error if isinstance(error, dict) else {"message": error}}


def test_a_stream_is_the_same_wherever_it_is_cut():
    stream = b": hello\r\n" + event({"content": "ż"}, usage=None) + event({"content": "ó"}, "stop", usage={"a": 1})
    whole = joined(stream)
    assert whole[1]["choices"][0]["message"]["content"] == "żó"
    assert whole[1]["usage"] == {"a": 1}
    for cut in range(len(stream)):
        assert joined(stream[:cut], stream[cut:]) == whole
