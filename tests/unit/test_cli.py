"""The command line: its options, its exit codes, and one clear message for every mistake of a new user."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from batchgen.cli import build_parser, main
from batchgen.engines import EngineSpec, build_engine
from batchgen.errors import EngineStartError
from batchgen.reasons import REASONS
from batchgen.tasks.listing import listing

CHAOS = """\
name: test
source: {path: seeds.jsonl}
model: {path: chaos}
steps: [{task: text_generation}]
output: run
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(CHAOS)
    (tmp_path / "seeds.jsonl").write_text('{"instruction": "a"}\n{"instruction": "b"}\n')
    return tmp_path


COMMANDS = (
    "run",
    "plan",
    "status",
    "merge",
    "publish",
    "draw",
    "tasks",
    "submit",
    "verify",
    "rejected",
    "dropped",
    "revoke",
    "gc",
    "report",
)


def options_of(command: str) -> list[str]:
    actions = next(a for a in build_parser()._actions if a.dest == "command")
    return sorted(name for action in actions.choices[command]._actions for name in action.option_strings)


def test_the_commands_and_their_options():
    job = ["--help", "--output", "--set", "-h"]
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert commands.keys() == set(COMMANDS)
    assert {name: options_of(name) for name in COMMANDS} == {
        "run": sorted([*job, "--address", "--extend", "--trust-remote-code", "--until"]),
        "plan": sorted([*job, "--extend", "--prompt", "--trust-remote-code"]),
        "status": ["--help", "--json", "-h"],
        "merge": ["--help", "--partial", "--set", "-h"],
        "verify": ["--help", "--json", "-h"],
        "rejected": ["--help", "--json", "--limit", "--reason", "-h"],
        "dropped": ["--help", "--json", "--limit", "--reason", "-h"],
        "revoke": ["--help", "-h"],
        "gc": ["--dry-run", "--help", "-h"],
        "report": ["--help", "--to", "-h"],
        "publish": ["--help", "--private", "--to", "-h"],
        "draw": job,
        "tasks": ["--help", "--json", "--markdown", "-h"],
        "submit": sorted([*job, "--address", "--extend", "--trust-remote-code", "--until"]),
    }


def test_help_imports_nothing_heavy_and_answers_at_once():
    code = "import sys; from batchgen.cli import build_parser; build_parser().format_help(); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    heavy = {"ray", "vllm", "distilabel", "torch", "transformers", "datasets", "pyarrow", "pydantic", "rich", "yaml"}
    assert not heavy & set(out.split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    started = time.monotonic()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert time.monotonic() - started < 20
    assert "Traceback" not in captured.err
    assert captured.err.startswith("batchgen: error: ")
    return captured.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model:", "modle:", "job.yaml:3: modle: unknown key; did you mean 'model'?"),
        (
            "source: {path: seeds.jsonl}",
            "source: {count: many}",
            "job.yaml:2: source.count: input should be a valid int",
        ),
        ("seeds.jsonl", "nope.jsonl", "no file matches 'nope.jsonl'"),
        ("path: chaos", "path: ./no-model", "model.path: there is no folder './no-model'"),
        ("path: chaos", "path: './[/old]/model'", "model.path: there is no folder './[/old]/model'"),
        ("path: chaos", "path: nobody/nothing-here", "model.path: 'nobody/nothing-here' is neither a folder here nor"),
        ("output: run", "output: /proc/run", "output: '/proc/run' cannot be written"),
        ("output: run", "output: seeds.jsonl", "output: 'seeds.jsonl' cannot be written"),
    ],
)
def test_a_bad_job_is_refused(folder: Path, capsys, old: str, new: str, message: str):
    (folder / "job.yaml").write_text(CHAOS.replace(old, new))
    assert message in refused(capsys, "run", "job.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "seeds.jsonl: the file has no rows"),
        ('{"instruction": "a"}\nnot json\n', "seeds.jsonl:2: not JSON"),
        ('{"question": "a"}\n', "steps[0] (text_generation): reads column 'instruction', which no step writes"),
        ('{"instruction": "a"}\n{"instruction": null}\n', "seeds.jsonl:2: column 'instruction' is missing or null"),
    ],
)
def test_bad_seeds_are_refused(folder: Path, capsys, content: str, message: str):
    (folder / "seeds.jsonl").write_text(content)
    assert message in refused(capsys, "run", "job.yaml")


LONG = """\
name: test
source:
  rows:
    - instruction: a
    - instruction: b
model:
  path: chaos
steps:
  - task: text_generation
  - task: text_generation
    input_mappings:
      instruction: generation
    output_mappings: {generation: better}
merge:
  columns: [better]
output: run
"""


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"- instruction: b": "- other: b"}, (), "job.yaml:5: source.rows[1]: column 'instruction' is missing"),
        ({"path: chaos": "path: /nowhere"}, (), "job.yaml:7: model.path: there is no folder '/nowhere'"),
        ({"path: chaos": "path: a.b\n  revision: c"}, (), "job.yaml:7: model.path: 'a.b' is neither"),
        ({": generation\n": ": gen\n"}, (), "job.yaml:10: steps[1] (text_generation): reads column 'gen'"),
        ({"[better]": "[bettr]"}, (), "job.yaml:15: merge.columns: no column 'bettr'"),
        ({"output: run": "output: seeds.jsonl/run"}, (), "job.yaml:16: output: 'seeds.jsonl/run' cannot be written"),
        ({}, ("--output", "seeds.jsonl/run"), "--set: output: 'seeds.jsonl/run' cannot be written: Not a directory"),
        ({}, ("--set", "model.path=/nowhere"), "--set: model.path: there is no folder '/nowhere'"),
        ({}, ("--set", "source={path: none.jsonl}"), "--set: source.path: no file matches 'none.jsonl'"),
        (
            {},
            ("--set", "steps.1.input_mappings.instruction=gen"),
            "--set: steps[1] (text_generation): reads column 'gen'",
        ),
    ],
)
def test_a_mistake_that_comes_out_after_the_job_was_read_is_placed_in_it(
    folder: Path, capsys, changes: dict[str, str], arguments: tuple[str, ...], message: str
):
    text = LONG
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "job.yaml").write_text(text)
    for command in ("run", "plan"):
        assert f"batchgen: error: {message}" in refused(capsys, command, "job.yaml", *arguments)
    if not arguments:
        from batchgen import run
        from batchgen.errors import UserError

        with pytest.raises(UserError) as caught:
            run("job.yaml", in_process=True)
        assert str(caught.value).startswith(message)


def test_what_is_no_field_of_the_job_or_is_read_once_has_no_place_in_it(folder: Path, capsys):
    os.mkfifo("pipe")
    writer = subprocess.Popen(["bash", "-c", "cat job.yaml > pipe"])
    assert refused(capsys, "plan", "pipe", "--set", "seed=1", "--set", "model.path=/no").startswith(
        "batchgen: error: --set"
    )
    assert writer.wait() == 0
    (folder / "job.yaml").write_text(CHAOS.replace("path: chaos", "path: /no"))
    writer = subprocess.Popen(["bash", "-c", "cat job.yaml > pipe"])
    assert refused(capsys, "plan", "pipe").startswith("batchgen: error: model.path: there is no folder '/no'")
    assert writer.wait() == 0


def test_an_output_that_cannot_be_reached_just_now_is_no_bad_input(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    opened = os.open

    def stale(path: str | Path, *arguments: int, **options: int) -> int:
        if str(path).endswith("run/dataset"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", stale)
    assert main(["plan", "job.yaml"]) == 75
    assert "output: 'run' cannot be written: Stale file handle" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "plan"])
def test_no_file_of_the_user_s_is_written_over(folder: Path, capsys, command):
    """A job may be JSON, which is YAML, and have its run around it."""
    tree = yaml.safe_load((folder / "job.yaml").read_text()) | {"output": "."}
    job = folder / "job.json"
    job.write_text(json.dumps(tree))
    said = refused(capsys, command, "job.json")
    assert said.startswith(f"batchgen: error: job.json:1: output: {folder} is no run and has a job.json")
    assert json.loads(job.read_text()) == tree
    assert {path.name for path in folder.iterdir()} == {"job.yaml", "job.json", "seeds.jsonl"}


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_dataset_folder_with_something_else_in_it_is_refused_before_anything_starts(folder: Path, capsys, command):
    mine = folder / "run" / "dataset" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    assert "run/dataset: exists and is not a published dataset" in refused(capsys, command, "job.yaml")
    assert [path for path in (folder / "run").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "precious"


def test_a_changed_job_is_refused_on_resume(folder: Path, capsys):
    from batchgen import Job, run

    run(Job.load("job.yaml"), in_process=True)
    message = refused(capsys, "run", "job.yaml", "--set", "sampling.temperature=0.5")
    assert "holds a run of another job" in message
    assert "sampling.temperature: absent then, 0.5 now" in message
    (folder / "seeds.jsonl").write_text('{"instruction": "a"}\n{"instruction": "c"}\n')
    assert "seeds: 2 rows then, 2 now (other content)" in refused(capsys, "run", "job.yaml")
    assert "seeds: 2 rows then" in refused(capsys, "plan", "job.yaml")


def test_plan_status_merge_publish_draw(folder: Path, capsys):
    from batchgen import Job, run

    assert main(["plan", "job.yaml"]) == 0
    assert "2 seed rows in 1 shard, model" in capsys.readouterr().out
    assert not (folder / "run").exists(), "plan writes nothing"
    run(Job.load("job.yaml"), in_process=True)
    assert main(["status", "run", "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["ok"], state["rejected"], state["complete"], state["rows_kept"]) == (2, 0, True, 2)
    assert main(["status", "run"]) == 0
    assert "rows: 2 ok, 0 rejected, of 2" in capsys.readouterr().out
    assert main(["merge", "run"]) == 0
    assert main(["publish", "run", "--to", "out"]) == 0
    assert (folder / "out" / "data" / "train-00000-of-00001.parquet").is_file()
    capsys.readouterr()
    assert main(["draw", "job.yaml"]) == 0
    assert capsys.readouterr().out.startswith("flowchart LR\n")


def test_the_names_of_columns_command_no_terminal(folder: Path, capsys):
    """They are those of a dataset that somebody else made."""
    from batchgen import Job, run

    odd = "a\x1b]0;b\x07\nc"
    rows = [{"instruction": "x", odd: text} for text in ("one", " ")]
    (folder / "seeds.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    job = yaml.safe_load((folder / "job.yaml").read_text())
    job["steps"] = [{"task": "text_generation", "input_mappings": {"instruction": odd}, "explode": "x -> y"}]
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    told = [refused(capsys, "plan", "job.yaml")]
    job["steps"][0] = {"task": "group_columns", "columns": [odd], "output_mappings": {"grouped": "\x1b[31mgroup"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    run(Job.load("job.yaml"), in_process=True)
    for command in (
        ["plan", "job.yaml"],
        ["draw", "job.yaml"],
        ["status", "run"],
        ["rejected", "run"],
        ["merge", "run"],
    ):
        assert main(command) == 0
        told.append(capsys.readouterr().out)
    assert "available: instruction, a\ufffd]0;b\ufffd\nc" in told[0]
    assert "instruction, a\ufffd]0;b\ufffd c, \ufffd[31mgroup" in told[1]
    assert "\ufffd[31mgroup" in told[2]
    assert not any(c in text for text in told for c in "\x1b\x07")


def test_a_user_that_there_is_not_has_no_home(folder: Path, capsys):
    message = "'~nobody-of-that-name/x': ~nobody-of-that-name has no home directory here"
    for field in ("output", "source.path", "model.path"):
        assert message in refused(capsys, "plan", "job.yaml", "--set", f"{field}=~nobody-of-that-name/x")


REJECTED = """
name: rejected
source: {path: seeds.jsonl}
shard_rows: 4
model: {path: chaos, engine: {empty_on: silent, truncate_on: cut, reply: "[1] Score: 4"}}
steps: [{task: quality_scorer}]
output: run
"""


@pytest.fixture
def with_rejected(folder: Path) -> Path:
    from batchgen import Job, run

    seeds = [{"instruction": text, "responses": ["\x1b[31mred", "b"]} for text in ("silent", "cut", *"abcde", "")]
    seeds.append({"instruction": "one", "responses": ["a"]})
    (folder / "seeds.jsonl").write_text("".join(json.dumps(seed) + "\n" for seed in seeds))
    (folder / "job.yaml").write_text(REJECTED)
    run(Job.load("job.yaml"), in_process=True)
    return folder


def test_rejected_rows_are_shown_with_what_the_model_had_said(with_rejected: Path, capsys):
    assert main(["rejected", "run"]) == 0
    first, *rows = capsys.readouterr().out.split("\n\n")
    codes = {"invalid_output": 5, "empty_completion": 1, "empty_input": 1, "truncated_output": 1}
    assert first.splitlines() == ["rejected:", *(f"  {code} {count}: {REASONS[code]}" for code, count in codes.items())]
    heads = [row.partition("\n")[0] for row in rows]
    assert heads[:2] == ["row 0: empty_completion", "row 1: truncated_output"]
    assert heads[2:] == [*(f"row {i}: invalid_output" for i in (2, 3, 4)), "row 7: empty_input"]
    assert rows[0].splitlines()[1:3] == ["  instruction: silent", '  responses: ["\\u001b[31mred", "b"]']
    assert rows[0].rstrip().endswith("the last completion:")
    assert len(rows[2].partition("the last completion: ")[2]) > 5
    assert "completion:" not in rows[5], "no engine was asked"


def test_rejected_rows_of_one_reason_and_as_json(with_rejected: Path, capsys):
    assert main(["rejected", "run", "--reason", "invalid_output", "--limit", "1"]) == 0
    assert capsys.readouterr().out.count("\nrow ") == 1
    assert main(["rejected", "run", "--limit", "0"]) == 0
    assert capsys.readouterr().out.count("\nrow ") == 8
    assert main(["rejected", "run", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row_index"] for row in rows] == list(range(8))
    assert rows[0]["failed_completion"] == ""
    assert "scores" not in rows[0]
    message = refused(capsys, "rejected", "run", "--reason", "invalid")
    assert message.startswith(
        "batchgen: error: --reason invalid: no row was rejected for that; rejected: invalid_output 5"
    )


def test_the_dataset_has_nothing_of_rejected_rows(with_rejected: Path):
    import pyarrow.parquet as pq

    table = pq.read_table(with_rejected / "run" / "dataset" / "data" / "train-00000-of-00001.parquet")
    assert table.num_rows == 1
    assert not {"failed_completion", "outcome", "reason"} & set(table.column_names)


def test_a_run_without_rejected_rows_says_so(folder: Path, capsys):
    from batchgen import Job, run

    run(Job.load("job.yaml"), in_process=True)
    assert main(["rejected", "run"]) == 0
    assert capsys.readouterr().out == "rejected: none\n"


def test_a_link_that_leads_to_itself_is_no_folder(folder: Path, capsys):
    (folder / "loop").symlink_to(folder / "loop")
    for command in (("plan", "job.yaml", "--output", "loop"), ("status", "loop"), ("publish", "loop", "--to", "x")):
        assert "loop: a symbolic link that leads to itself" in refused(capsys, *command)


@pytest.mark.parametrize("command", ["status", "merge", "publish"])
def test_a_folder_that_is_no_run_is_refused(folder: Path, capsys, command: str):
    message = refused(capsys, command, str(folder), *(["--to", "x"] if command == "publish" else []))
    assert message == f"batchgen: error: {folder} is not a batchgen run: it has no plan.json\n"


def test_a_job_that_is_taken_for_its_run_is_told_what_a_run_is(folder: Path, capsys):
    assert refused(capsys, "status", "job.yaml") == (
        f"batchgen: error: {folder}/job.yaml is not a batchgen run: it has no plan.json; a run is the folder that its "
        "job has as `output`\n"
    )


def test_merge_changes_only_merge_fields(folder: Path, capsys):
    from batchgen import Job, run

    run(Job.load("job.yaml"), in_process=True)
    assert "only merge.* fields can change" in refused(capsys, "merge", "run", "--set", "seed=3")
    assert "did you mean 'near'" in refused(capsys, "merge", "run", "--set", "merge.nera=1")
    said = refused(capsys, "merge", "run", "--set", "merge.prompt=instructions")
    assert "merge: no text or conversation column 'instructions'; did you mean 'instruction'?" in said


def test_unknown_commands_and_versions():
    with pytest.raises(SystemExit) as caught:
        main(["rnu"])
    assert caught.value.code == 2
    assert main(["--version"]) == 0
    assert main([]) == 2


def test_the_tasks_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["tasks", "--json"]) == 0
    tasks = {task["name"]: task for task in json.loads(capsys.readouterr().out)}
    assert len(tasks) > 25
    assert tasks["magpie"]["inputs"] == {"system_prompt": "text?"}
    assert tasks["magpie"]["outputs"] == {"instruction": "text", "response": "text"}
    assert tasks["magpie"]["parameters"]["n_turns"] == 1
    assert tasks["magpie"]["paper"] == "https://arxiv.org/abs/2406.08464"
    assert tasks["generate_sentence_pair"]["parameters"]["action"] == "required"
    assert tasks["prometheus_eval"]["legal"] == {"mode": ["absolute", "relative"]}
    assert tasks["generate_text_retrieval_data"]["legal"]["num_words"] == [50, 100, 200, 300, 400, 500]
    assert main(["tasks"]) == 0
    shown = capsys.readouterr().out
    assert "reads   system_prompt (text?)" in shown
    assert "set     mode=required (absolute | relative), rubric=required, rubrics, reference=false" in shown
    assert 'high_score ("4" | "4.5" | "5")' in shown


def test_a_task_is_explained(capsys: pytest.CaptureFixture[str]):
    assert main(["tasks", "magpie", "drop_duplicates"]) == 0
    shown = capsys.readouterr().out
    assert "n_turns=1\n        user turns; with more than one, the row is a `conversation`\n" in shown
    assert "`[text, weight]`" in shown
    assert "\n\ndrop_duplicates: " in shown
    assert main(["tasks", "magpie", "--json"]) == 0
    (task,) = json.loads(capsys.readouterr().out)
    assert task["meaning"]["only_instruction"] == "ends with the first user turn"
    assert "unknown task 'magpi'; did you mean 'magpie'?" in refused(capsys, "tasks", "magpi")


def test_every_parameter_says_what_it_means():
    silent = [(task["name"], name) for task in listing() for name, about in task["meaning"].items() if not about]
    assert silent == []


def test_vllm_that_is_not_installed_is_named_before_anything_starts(folder: Path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # to Python it is not there
    (folder / "job.yaml").write_text(CHAOS.replace("path: chaos", "path: embedded"))
    assert main(["plan", "job.yaml"]) == 0, "it may be planned on a machine that runs no engine"
    assert main(["run", "job.yaml"]) == 2
    assert "error: job.yaml:3: model.backend: vLLM is not installed in this environment; in" in capsys.readouterr().err
    assert not (folder / "run").exists()


@pytest.mark.parametrize(("backend", "package"), [("vllm", "vllm"), ("transformers", "torch")])
def test_where_a_cluster_s_machine_lacks_an_engine_no_second_start_is_tried(monkeypatch, backend: str, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineStartError, match="is not installed in this environment") as caught:
        asyncio.run(build_engine(EngineSpec("embedded", backend)).start())
    assert caught.value.final
