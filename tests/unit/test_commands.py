"""What the commands print, word for word, on a run whose every row is known."""

from __future__ import annotations

import functools
import json
import re
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchgen import api
from batchgen import deadline as deadlines
from batchgen.cli import main
from batchgen.drive import Status
from batchgen.errors import EngineStartError, Stopped
from batchgen.job import Job
from batchgen.reasons import NOTES
from batchgen.result import Result
from batchgen.store import LocalStore
from tests.helpers import resealed

JOB = """\
name: walk
source: {path: seeds.jsonl}
shard_rows: 2
model: {path: chaos, engine: {reply: "one two", empty_on: silent, truncate_on: "cut: one"}}
steps:
  - task: self_instruct
    input_mappings: {input: context}
    num_instructions: 2
    explode: instructions -> instruction
  - task: text_generation
    template: "{{ context }}: {{ instruction }}"
merge: {exact: false, near: false, prompt: instruction, answer: generation}
output: run
"""
CONTEXTS = ["a", "b", "silent", "cut", "e"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "run", functools.partial(api.run, in_process=True))
    monkeypatch.setattr("sys.argv", ["batchgen", "run", "job.yaml"])
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps({"context": text}) + "\n" for text in CONTEXTS))
    return tmp_path


@pytest.fixture
def ran(folder: Path) -> Path:
    api.run(Job.load("job.yaml"))
    return folder / "run"


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    return re.sub(r"\[\d:\d\d\]", "[0:00]", capsys.readouterr().out)


def complained(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    assert main(arguments) == code
    return capsys.readouterr().err


def test_a_plan_and_the_run_that_it_becomes(folder: Path, capsys: pytest.CaptureFixture[str]):
    planned = """\
job walk: 5 seed rows in 3 shards, model chaos
  1. self_instruct -> instructions; explode instructions -> instruction
  2. text_generation -> generation
columns of a shard: row_id, row_index, branch, outcome, reason, model, finish_reason, input_tokens, output_tokens, \
notes, failed_completion, context, instruction, generation
merge: duplicates stay
output: run"""
    assert said(capsys, "plan", "job.yaml") == planned + "\n"
    out = said(capsys, "run", "job.yaml")
    begun, _, rest = out.partition("\n[0:00]")
    assert begun == (
        "job walk: self_instruct -> text_generation on chaos\n"
        "checking job, seeds and model, then starting Ray and the engines ..."
    )
    row = "       user: one two\n  assistant: one two\n\n"
    assert rest.partition("5/5 rows")[2].partition("\n")[2] == (
        "merged 5 rows: 3 kept; dropped: rejected: empty_completion 1, truncated 1 "
        "(a larger sampling.max_tokens (within max_model_len) cuts fewer; merge.drop_truncated: false keeps them)\n"
        "notes: instruction_missing 4, truncated 1\n"
        f"sample rows:\n{3 * row}"
        "dropped rows: batchgen dropped run\n"
        "rejected rows: batchgen rejected run\n"
        f"\ndataset: {folder}/run/dataset\n"
        f"  load_dataset('{folder}/run/dataset')\n"
        f"report: {folder}/run/report.html\n"
    )
    assert said(capsys, "plan", "job.yaml") == planned + " (holds a run of this job, which would continue)\n"


def test_a_run_whose_time_is_up_publishes_what_is_there_and_goes_on_by_the_same_command(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["batchgen", "run", "job.yaml", "--until", "8h"])
    (folder / "seeds.jsonl").write_text("".join(json.dumps({"context": str(number)}) + "\n" for number in range(80)))
    slow = ("--set", "model.engine={reply: one two, latency: 0.05, slots: 2}")
    whole, now = api.run, datetime.now().astimezone()
    monkeypatch.setattr(deadlines, "_LOOK_SECONDS", 0.01)

    class Morning(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(hours=8)

    def run(job: Job, address: str | None, watch: api.Watch, trust: bool, until: datetime, extend: bool) -> Result:
        assert timedelta(hours=8) <= until - now < timedelta(hours=8, minutes=5)

        def look(status: Status) -> None:
            watch(status)
            if status.shards_done:
                monkeypatch.setattr(deadlines, "datetime", Morning)

        return whole(job, address, look, trust, until=until)

    monkeypatch.setattr(api, "run", run)
    assert main(["run", "job.yaml", *slow, "--until", "8h"]) == 75
    out, err = capsys.readouterr()
    shards = re.fullmatch(
        r"batchgen: stopped: its time was up; the dataset has the rows of (\d+) of 40 shards\n"
        r"Every committed row is safe\. To go on, run the same command again:\n  batchgen run job\.yaml --until 8h\n",
        err,
    )
    assert shards, err
    assert re.search(r"\n  its time is up \(..:..\): what has begun is finished and committed; told to stop once", out)
    assert f"\n  load_dataset('{folder}/run/dataset')\nreport: " in out
    assert f"dataset: version 1, {2 * int(shards[1])} rows" in said(capsys, "status", "run")
    monkeypatch.setattr(api, "run", whole)
    monkeypatch.setattr(deadlines, "datetime", datetime)
    assert "merged 80 rows: 80 kept" in said(capsys, "run", "job.yaml", *slow, "--until", "23h59m")
    assert "expected a time of day (07:00), a date" in complained(capsys, "run", "job.yaml", "--until", "noon", code=2)
    there = ("submit", "job.yaml", "--address", "http://127.0.0.1:1")
    assert "--until '2020-01-01': that is over" in complained(capsys, *there, "--until", "2020-01-01", code=2)


def test_a_plan_shows_how_the_user_s_turns_are_opened(folder: Path, capsys: pytest.CaptureFixture[str]):
    derived = r"user turns of embedded: opened by '<|im_start|>user\n', ended by '<|im_end|>'"
    given = r"user turns of embedded: opened by '<|im_start|>user:', ended by '<|im_end|>'"
    magpie = ("--set", "source.count=2", "--set", "steps=[{task: magpie}]", "--set", "merge={}")
    embedded = ("--set", "model={path: embedded}")
    assert f"\n{derived}\n" in said(capsys, "plan", "job.yaml", *magpie, *embedded)
    opening = ("--set", "model.pre_query_template='<|im_start|>user:'")
    assert f"\n{given}\n" in said(capsys, "plan", "job.yaml", *magpie, *embedded, *opening)
    assert "user turns" not in said(capsys, "plan", "job.yaml", *embedded)
    judge = ("--set", "models.judge={path: embedded}", "--set", "model={path: chaos}")
    asked = "{task: text_generation, input_mappings: {instruction: response}}"
    on_judge = f"[{{task: magpie, model: judge}}, {asked}]"
    assert f"\n{derived}\n" in said(capsys, "plan", "job.yaml", *magpie, *judge, "--set", f"steps={on_judge}")
    here = f"[{{task: magpie}}, {asked.replace('}}', '}, model: judge}')}]"
    assert "user turns" not in said(capsys, "plan", "job.yaml", *magpie, *judge, "--set", f"steps={here}")
    assert "user turns" not in said(capsys, "plan", "job.yaml", *magpie)


ANSWER = """\
- task: text_generation
  input_mappings: {instruction: context}
  system_prompt: "Sing.\\n\\tLoudly: \\e[1m"
"""
GROUP = "{task: group_columns, columns: [context]}"


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        (
            {"steps": ANSWER},
            "first prompt of row 4, to chaos, 100 tokens:\n"
            "  <|im_start|>system\n  Sing.\n      Loudly: \ufffd[1m<|im_end|>\n"
            "  <|im_start|>user\n  e<|im_end|>\n  <|im_start|>assistant\n  ",
        ),
        (
            {"models.judge": "{path: m, backend: openai, engine: {base_url: 'http://127.0.0.1:1/v1'}}"}
            | {"steps": ANSWER + "  model: judge\n- task: evol_quality\n  input_mappings: {response: generation}\n"}
            | {"steps.1.input_mappings.instruction": "context"},
            "first prompt of row 4, to m; its server writes them as a prompt:\n"
            "  system: Sing.\n      Loudly: \ufffd[1m\n  user: e",
        ),
        (
            {"model": "{path: embedded}", "steps": f"[{GROUP}, {{task: magpie, system_prompt: Count.}}]"},
            "first prompt of row 4, to embedded, 10 tokens:\n"
            "  <|im_start|>system\n  Count.<|im_end|>\n  <|im_start|>user\n  ",
        ),
        (
            {"source": "{rows: [{context: a}, {context: b}, {context: c}, {context: d}, {context: ' '}]}"}
            | {"steps": ANSWER},
            "row 4 asks no model: rejected as empty_input",
        ),
        ({"steps": f"[{GROUP}]"}, "row 4 asks no model: no step does"),
    ],
)
def test_a_plan_shows_what_the_model_is_asked_first(
    changes: dict[str, str], shown: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    changed = [part for name, value in {**changes, "merge": "{}"}.items() for part in ("--set", f"{name}={value}")]
    out = said(capsys, "plan", "job.yaml", "--prompt", "4", *changed)
    assert out.partition("\noutput: run\n")[2] == shown + "\n"
    assert not Path("run").exists()


def test_a_plan_shows_the_prompt_of_rows_that_are_there(folder: Path, capsys: pytest.CaptureFixture[str]):
    beyond = complained(capsys, "plan", "job.yaml", "--prompt", "5", code=2)
    assert beyond == "batchgen: error: --prompt 5: the job has rows 0 to 4\n"
    assert "\nfirst prompt of row 0, to chaos, " in said(capsys, "plan", "job.yaml", "--prompt", "0")


def test_a_job_s_parts_are_named_in_the_singular_and_without_what_is_not_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    good = ("--set", "shard_rows=5", "--set", "steps.0.num_instructions=1", "--set", "model.engine={reply: one}")
    assert "5 seed rows in 1 shard, model chaos\n" in said(capsys, "plan", "job.yaml", *good)
    judge = ("--set", "models.judge={path: chaos}", "--set", "steps.1.model=judge")
    assert "\n  2. text_generation on judge -> generation\n" in said(capsys, "plan", "job.yaml", *judge)
    out = said(capsys, "run", "job.yaml", *good)
    assert "merged 5 rows: 5 kept\nsample rows:\n" in out
    assert "notes: " not in out
    assert "rejected" not in out
    step = "{task: drop_duplicates, input_mappings: {instruction: context}}"
    bare = ("--set", f"steps=[{step}]", "--set", "merge={}", "--output", "bare")
    assert "  1. drop_duplicates\ncolumns" in said(capsys, "plan", "job.yaml", *bare)


def test_how_a_run_stands(folder: Path, ran: Path, capsys: pytest.CaptureFixture[str]):
    files = [pq.read_table(path) for path in ran.glob("attempts/*/*.parquet")]
    tokens = {name: sum(sum(file[f"{name}_tokens"].to_pylist()) for file in files) for name in ("input", "output")}
    assert tokens["input"] > 4 * len("one two")
    assert tokens["output"] == 16, "two words at each of eight calls that had an answer"
    assert json.loads(said(capsys, "status", "run", "--json")) == {
        "run": str(ran),
        "rows": 5,
        "shards": 3,
        "shards_committed": 3,
        "ok": 4,
        "rejected": 1,
        "reasons": {"empty_completion": 1},
        "notes": {"instruction_missing": 4, "truncated": 1},
        "input_tokens": tokens["input"],
        "output_tokens": tokens["output"],
        "complete": True,
        "version": 1,
        "rows_kept": 3,
    }
    lines = [
        f"{ran}: 3 of 3 shards committed",
        "  rows: 4 ok, 1 rejected, of 5 (empty_completion 1)",
        "  notes:",
        f"    instruction_missing 4: {NOTES['instruction_missing']}",
        f"    truncated 1: {NOTES['truncated']}",
        f"  tokens: {tokens['input']:,} in, {tokens['output']:,} out",
        "  dataset: version 1, 3 rows",
    ]
    assert said(capsys, "status", "run").splitlines() == lines
    for path in (ran / "versions").glob("*.json"):
        path.unlink()
    state = json.loads(said(capsys, "status", "run", "--json"))
    assert (state["version"], state["rows_kept"]) == (None, None)
    assert said(capsys, "status", "run").splitlines() == [*lines[:-1], "  dataset: not merged yet"]
    complaint = complained(capsys, "publish", "run", "--to", "out", code=2)
    assert complaint == "batchgen: error: run: no dataset version; merge first: batchgen merge run\n"


def test_other_settings_make_another_version(ran: Path, capsys: pytest.CaptureFixture[str]):
    assert said(capsys, "merge", "run", "--set", "merge.drop_truncated=false") == (
        "merged 5 rows: 4 kept; dropped: rejected: empty_completion 1\n"
        "version 2; publish it with: batchgen publish run --to DIR\n"
    )
    assert said(capsys, "publish", "run", "--to", "out") == f"version 2, 4 rows: {ran.parent}/out\n"
    complaint = complained(capsys, "publish", "run", "--to", "/proc/nowhere", code=2)
    assert complaint == "batchgen: error: --to: '/proc/nowhere' cannot be written: No such file or directory\n"


VERIFIED = """\
shards                                    3
shards committed and sound                {sound}
bytes read                           {bytes:>6,}
seed rows expected                        5
seed rows found                           {found}
  ok                                      {ok}
  rejected                                {rejected}
seed rows not committed yet               {missing}
seed rows lost                            0
rows twice                                0
rows of another shard                     0
corrupt shards                            {corrupt}
dataset versions, sound                   {versions}
dataset versions, corrupt                 {corrupt_versions}
"""


def verified(**numbers: int) -> str:
    whole = {"sound": 3, "found": 5, "ok": 4, "rejected": 1, "missing": 0, "corrupt": 0}
    return VERIFIED.format(**{**whole, "versions": 1, "corrupt_versions": 0, **numbers})


def test_what_is_sound_and_what_is_not(ran: Path, capsys: pytest.CaptureFixture[str]):
    sizes = {path.parent.name: path.stat().st_size for path in ran.glob("attempts/*/*.parquet")}
    assert said(capsys, "verify", "run") == verified(bytes=sum(sizes.values()))
    state = json.loads(said(capsys, "verify", "run", "--json"))
    assert (state["run"], state["good"], state["ok"], state["corrupt"]) == (str(ran), True, 4, [])
    (file,) = ran.glob("attempts/000000/*.parquet")
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    assert main(["verify", "run"]) == 1
    out, complaints = capsys.readouterr()
    left = sizes["000001"] + sizes["000002"]
    assert out == verified(sound=2, bytes=left, found=3, ok=2, corrupt=1)
    key = file.relative_to(ran)
    assert complaints == (
        f"batchgen: error: shard 000000: {key} is not what was committed (size or SHA-256 differs)\n"
        "to have a shard generated again: batchgen revoke run SHARD, then the run's own command\n"
    )
    state = json.loads(said(capsys, "verify", "run", "--json", code=1))
    assert (state["good"], len(state["corrupt"])) == (False, 1)
    assert said(capsys, "revoke", "run", "0", "000002") == (
        "shard 000000 (seed rows 0 to 1) is generated again by the next run\n"
        "shard 000002 (seed rows 4 to 4) is generated again by the next run\n"
    )
    assert said(capsys, "verify", "run") == verified(sound=1, bytes=sizes["000001"], found=2, ok=1, missing=3)
    complaint = complained(capsys, "merge", "run", code=2)
    assert "1 of 3 shards are committed; resume the run, or merge what is there with --partial" in complaint
    assert "merged 2 rows: 0 kept" not in said(capsys, "run", "job.yaml")
    assert said(capsys, "verify", "run") == verified(bytes=sum(sizes.values()))


def test_a_version_that_was_changed_and_rows_of_other_seeds_are_told(ran: Path, capsys: pytest.CaptureFixture[str]):
    record = ran / "versions" / "0001.json"
    record.write_bytes(record.read_bytes().replace(b'"kept":3', b'"kept":4'))
    complaint = complained(capsys, "verify", "run", code=1)
    assert complaint == (
        "batchgen: error: versions/0001.json was changed after it was written; remove it and merge again\n"
    )
    record.unlink()
    plan = ran / "plan.json"
    tree: dict[str, Any] = json.loads(plan.read_bytes())
    plan.write_bytes(resealed(plan.read_bytes(), inputs={**tree["inputs"], "seeds": "0" * 32}))
    complaint = complained(capsys, "verify", "run", code=1)
    assert "of another plan" in complaint


def test_garbage_is_counted_and_removed(ran: Path, capsys: pytest.CaptureFixture[str]):
    lost = ran / "attempts" / "000001" / f"{'0' * 32}.parquet"
    lost.write_bytes(b"x" * 1234)
    assert said(capsys, "gc", "run", "--dry-run") == "would remove 1 file, 1,234 bytes\n"
    assert lost.exists()
    assert said(capsys, "gc", "run") == "removed 1 file, 1,234 bytes\n"
    assert not lost.exists()
    assert said(capsys, "gc", "run") == "removed 0 files, 0 bytes\n"


def test_how_to_go_on_is_told_where_a_run_stops(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    again = "\nEvery committed row is safe. To go on, run the same command again:\n  batchgen run job.yaml\n"
    for error, reason in ((Stopped("a reason"), "a reason"), (KeyboardInterrupt(), "interrupted")):

        def stops(*arguments: Any, error: BaseException = error, **named: Any) -> None:
            raise error

        monkeypatch.setattr(api, "run", stops)
        assert complained(capsys, "run", "job.yaml", code=75) == f"batchgen: stopped: {reason}{again}"


def test_the_end_of_the_engine_s_log_is_shown_where_it_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    log = folder / "run" / "logs" / "engine-0.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {number}\n" for number in range(100)))

    def fails(*arguments: Any, **named: Any) -> None:
        raise EngineStartError("it did not start")

    monkeypatch.setattr(api, "run", fails)
    complaint = complained(capsys, "run", "job.yaml", code=1)
    shown = "".join(f"  line {number}\n" for number in range(85, 100))
    assert complaint == f"last lines of run/logs/engine-0.log:\n{shown}batchgen: error: it did not start\n"


def test_a_dataset_in_a_bucket_is_fetched_before_it_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    result = api.run(Job.load("job.yaml"))
    store = LocalStore("run")
    monkeypatch.setattr("batchgen.store.open_store", lambda location: store)
    monkeypatch.setattr(api, "run", lambda *arguments, **named: result)
    out = said(capsys, "run", "job.yaml", "--output", "s3://bucket/a b")
    assert "rejected rows: batchgen rejected 's3://bucket/a b'\n" in out
    assert "  batchgen publish 's3://bucket/a b' --to DIR, and then load_dataset('DIR')\n" in out
