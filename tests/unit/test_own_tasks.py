"""Tasks of the user's own: from Python, by name, never from YAML alone."""

from __future__ import annotations

import importlib
import inspect
import json
import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from distilabel.steps import GlobalStep, Step, StepInput
from distilabel.steps.tasks import Task

from batchgen import Job, JobError, own_task, run
from batchgen.api import plan_run
from batchgen.cli import main
from batchgen.distributed.parcel import Parcel
from batchgen.errors import EngineStartError, UserError
from batchgen.fleet import HostConfig
from batchgen.merge import latest_version
from batchgen.publish import publish_folder
from batchgen.records import seal, unseal
from batchgen.report import write_report
from batchgen.savedjob import JOB_FORMAT
from batchgen.settle import read_plan
from batchgen.store import LocalStore, open_store
from batchgen.tasks.spec import TaskSpec
from batchgen.upkeep import verify


class Shout(Task):
    """Asks for a word in capitals."""

    marks: int = 1

    @property
    def inputs(self):
        return ["word"]

    @property
    def outputs(self):
        return ["shout", "length"]

    def format_input(self, input):
        return [{"role": "user", "content": f"Shout {input['word']}"}]

    def format_output(self, output, input=None):
        return {"shout": output.upper() + "!" * self.marks, "length": len(output)}


ENTRY = own_task(Shout, inputs={"word": "text"}, outputs={"shout": "text", "length": "number"})


def tree(output: Path) -> dict:
    return {
        "name": "own",
        "source": {"rows": [{"word": "hey"}, {"word": "ho"}]},
        "model": {"path": "chaos", "engine": {"reply": "well"}},
        "steps": [{"task": "shout", "marks": 3}],
        "output": str(output),
    }


def test_an_own_task_runs_from_a_file_a_tree_or_a_job(tmp_path: Path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree(tmp_path / "a")))
    jobs = (tmp_path / "job.yaml", tree(tmp_path / "b"), Job.of(tree(tmp_path / "c"), tasks={"shout": ENTRY}))
    for job in jobs:
        result = run(job, in_process=True, tasks={"shout": ENTRY})
        (file,) = (Path(result.dataset) / "data").glob("*.parquet")
        rows = pq.read_table(file).to_pylist()
        assert [(row["word"], row["shout"], row["length"]) for row in rows] == [
            ("hey", "WELL!!!", 4),
            ("ho", "WELL!!!", 4),
        ]


class Shorten(Step):
    """Cuts words, and leaves bad ones out."""

    length: int = 3

    @property
    def inputs(self):
        return ["word"]

    @property
    def outputs(self):
        return ["short", "long"]

    def process(self, inputs: StepInput):
        for row in inputs:
            if row["word"] != "bad":
                yield [{**row, "short": row["word"][: self.length], "long": len(row["word"]) > self.length}]


def test_a_step_without_a_model_runs_between_the_tasks_and_may_leave_rows_out(tmp_path: Path):
    shorten = own_task(Shorten, inputs={"word": "text"}, outputs={"short": "text", "long": "boolean"})
    steps = [
        {"task": "shorten it!", "length": 2},
        {"task": "text_generation", "input_mappings": {"instruction": "short"}},
    ]
    rows = [{"word": word} for word in ("hey", "bad", "ho")]
    job = {**tree(tmp_path), "source": {"rows": rows}, "steps": steps}
    result = run(job, in_process=True, tasks={"shorten it!": shorten})
    assert (result.progress.ok, result.progress.reasons) == (2, {"filtered": 1})
    (file,) = (Path(result.dataset) / "data").glob("*.parquet")
    found = [(row["short"], row["long"], row["generation"]) for row in pq.read_table(file).to_pylist()]
    assert found == [("he", True, "well"), ("ho", False, "well")]
    with pytest.raises(JobError, match="shorten it! calls no model and generates nothing"):
        Job.of({**job, "steps": [{"task": "shorten it!", "num_generations": 2}]}, tasks={"shorten it!": shorten})


class Broken(Shorten):
    """Fails where a word says so, in code of its own or in a library's."""

    def load(self):
        super().load()
        if self.length == 0:
            raise FileNotFoundError("index.bin")

    def process(self, inputs: StepInput):
        yield [{**row, "short": str(json.loads(row["word"])), "long": 1 / len(row["word"]) > 1} for row in inputs]


def test_where_code_of_one_s_own_failed_is_told(tmp_path: Path):
    entry = own_task(Broken, inputs={"word": "text"}, outputs={"short": "text", "long": "boolean"})
    first = inspect.getsourcelines(Broken)[1]
    rows = [{"word": word} for word in ("1", "{", "2", "[")]
    job = {**tree(tmp_path / "run"), "source": {"rows": rows}, "steps": [{"task": "broken"}]}
    result = run(job, in_process=True, tasks={"broken": entry})
    reason = f"task_error:JSONDecodeError (test_own_tasks.py:{first + 9})"
    assert (result.progress.ok, result.progress.reasons) == (2, {reason: 2})
    # Not after three tries, each of which would load the model.
    where = rf"^broken cannot be set up: FileNotFoundError: index.bin \(test_own_tasks.py:{first + 6}\)"
    failing = {**job, "steps": [{"task": "broken", "length": 0}], "output": str(tmp_path / "failing")}
    with pytest.raises(EngineStartError, match=where):
        run(failing, in_process=True, tasks={"broken": entry})


class Drawn(Shorten):
    """Draws a number for every row, of those that it has loaded, and counts rows."""

    def load(self):
        super().load()
        self._numbers, self._seen = range(1_000_000), 0

    def process(self, inputs: StepInput):
        self._seen += len(inputs)
        drawn = f"{random.choice(self._numbers)} {np.random.randint(1_000_000)}"
        yield [{**row, "short": drawn, "long": self._seen > 1} for row in inputs]


def test_a_step_without_threads_is_one_object_and_its_choices_are_the_row_s_own(tmp_path: Path):
    entry = own_task(Drawn, inputs={"word": "text"}, outputs={"short": "text", "long": "boolean"})
    found = []
    for name in ("once", "again"):
        job = {**tree(tmp_path / name), "source": {"rows": [{"word": word} for word in "abc"]}}
        run({**job, "steps": [{"task": "drawn"}]}, in_process=True, tasks={"drawn": entry})
        (file,) = (tmp_path / name / "dataset" / "data").glob("*.parquet")
        table = pq.read_table(file).to_pylist()
        found.append({row["word"]: row["short"] for row in table})
        assert [row["long"] for row in table].count(False) == 1
    assert found[0] == found[1]
    assert len(set(found[0].values())) == 3


MEETING = threading.Barrier(4)


class Met(Shorten):
    """Waits for three other rows, on an instance of its own."""

    def process(self, inputs: StepInput):
        assert threading.current_thread() is not threading.main_thread()
        try:
            assert self.length == 3, "another row is in this instance"
            self.length = 4
            MEETING.wait(timeout=30)
        finally:
            self.length = 3
        yield from super().process(inputs)


def test_a_step_on_threads_works_on_as_many_rows_at_once_and_rejects_each_alone(tmp_path: Path):
    entry = own_task(Met, inputs={"word": "text"}, outputs={"short": "text", "long": "boolean"}, threads=4)
    rows = [{"word": word} for word in ("hey", "bad", "ho", "hello") * 5]
    steps = [{"task": "met"}, {"task": "text_generation", "input_mappings": {"instruction": "short"}}]
    result = run({**tree(tmp_path), "source": {"rows": rows}, "steps": steps}, in_process=True, tasks={"met": entry})
    assert (result.progress.ok, result.progress.reasons) == (15, {"filtered": 5})


def test_more_rows_are_begun_where_some_stand_on_threads(tmp_path: Path):
    # Two rows for the one slot; the barrier opens once four are at the step.
    engine = {"reply": "well", "slots": 1}
    entry = own_task(Met, inputs={"word": "text"}, outputs={"short": "text", "long": "boolean"}, threads=4)
    rows = [{"word": f"w{index}"} for index in range(8)]
    job = {**tree(tmp_path), "source": {"rows": rows}, "steps": [{"task": "met"}]}
    result = run({**job, "model": {"path": "chaos", "engine": engine}}, in_process=True, tasks={"met": entry})
    assert result.progress.ok == 8


@pytest.mark.parametrize(("task", "threads"), [(Shout, 2), (Shorten, -1), (Shorten, 2.5), (Shorten, "4")])
def test_threads_are_for_steps_without_a_model(task: type, threads: Any):
    with pytest.raises(JobError, match=f"{task.__name__}: threads={threads!r}: "):
        own_task(task, inputs={}, outputs={}, threads=threads)


class All(GlobalStep):
    """Needs all rows."""


@pytest.mark.parametrize(
    ("task", "inputs", "outputs", "message"),
    [
        (str, {}, {}, "own_task: expected a subclass of distilabel's Task or Step .*, got str"),
        (len, {}, {}, "own_task: expected a subclass of distilabel's Task or Step .*, got len"),
        (Shorten(name="it"), {}, {}, "own_task: expected a .*, got an object of type Shorten"),
        (All, {}, {}, "own_task: All is a GlobalStep; a task or step sees one row at a time"),
        (Shorten, ["word"], {}, "Shorten: inputs: expected a mapping of columns to kinds, got list"),
        (Shorten, {}, {"n": "int"}, r"Shorten: outputs: 'n': expected text, number, .*\[...\].*, got 'int'"),
        (Shorten, {"word": str}, {}, "Shorten: inputs: 'word': expected text, .*, got <class 'str'>"),
        (Shorten, {}, {"n": "any"}, "Shorten: outputs: 'n': expected text, .*, got 'any'"),
    ],
)
def test_an_entry_that_cannot_run_is_refused(task: Any, inputs: Any, outputs: Any, message: str):
    with pytest.raises(JobError, match=message):
        own_task(task, inputs=inputs, outputs=outputs)


@pytest.mark.parametrize(
    ("job", "tasks", "message"),
    [
        (None, None, "run: expected a Job, its tree, or the path of its file, got NoneType"),
        ({}, [ENTRY], "tasks: expected a mapping of names to what own_task gives, got list"),
        ({}, {"shout": Shout}, r"tasks\['shout'\]: expected what own_task\(class, .*\) gives, got Shout"),
        ({}, {"shout": None}, r"tasks\['shout'\]: expected what own_task\(class, .*\) gives, got NoneType"),
    ],
)
def test_what_run_cannot_take_is_named(job: Any, tasks: Any, message: str):
    with pytest.raises(JobError, match=message):
        run(job, tasks=tasks, in_process=True)


class Letters(Shorten):
    """Makes a row of every letter of a word."""

    def process(self, inputs: StepInput):
        for row in inputs:
            yield [{**row, "word": "another", "short": letter, "long": False} for letter in row["word"]]


def test_no_engine_is_started_for_a_model_that_no_step_calls(tmp_path: Path):
    rated = {"instruction": "Add.", "generations": ["a", "b"], "ratings": [1.0, 2.0]}
    job = {**tree(tmp_path / "run"), "source": {"rows": [rated]}, "steps": [{"task": "preference_pair"}]}
    result = run({**job, "model": {"path": "there/is-no-such-model"}}, in_process=True)
    (row,) = pq.read_table(next((Path(result.dataset) / "data").glob("*.parquet"))).to_pylist()
    assert (row["chosen"][0]["content"], row["model"]) == ("b", "there/is-no-such-model")


@pytest.mark.parametrize("threads", [0, 2])
def test_a_step_may_make_several_rows_of_one(tmp_path: Path, threads: int):
    letters = own_task(Letters, inputs={"word": "text"}, outputs={"short": "text", "long": "boolean"}, threads=threads)
    answer = {"task": "text_generation", "input_mappings": {"instruction": "short"}}
    steps = [answer, {"task": "letters"}, {**answer, "output_mappings": {"generation": "second"}}]
    steps[0] = {**answer, "input_mappings": {"instruction": "word"}}
    rows = [{"word": word} for word in ("hey", "", "o")]
    job = {**tree(tmp_path / "run"), "source": {"rows": rows}, "steps": steps, "merge": {"exact": False, "near": False}}
    result = run(job, in_process=True, tasks={"letters": letters})
    (file,) = (Path(result.dataset) / "data").glob("*.parquet")
    table = pq.read_table(file).to_pylist()
    found = [(row["word"], row["branch"], row["short"], row["generation"], row["second"]) for row in table]
    assert found == [(word, branch, short, "well", "well") for word, branch, short in LETTERS]
    # What the first answer cost is counted once.
    assert [row["output_tokens"] for row in table] == [2, 1, 1, 2]
    assert (result.progress.ok, result.progress.reasons) == (2, {"empty_input": 1})
    store = open_store(str(tmp_path / "run"))
    assert verify(store, read_plan(store)).good


class Chorus(Shout):
    """Makes two rows of every answer."""

    def process(self, inputs):
        for batch in super().process(inputs):
            yield [{**row, "length": number} for row in batch for number in (1, 2)]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_task_may_make_several_rows_of_each_of_several_generations(tmp_path: Path, grouped: bool):
    entry = own_task(Chorus, inputs={"word": "text"}, outputs={"shout": "text", "length": "number"})
    chorus = {"task": "chorus", "num_generations": 2, "group_generations": grouped}
    job = {**tree(tmp_path / "run"), "steps": [chorus], "merge": {"exact": False, "near": False}}
    result = run(job, in_process=True, tasks={"chorus": entry})
    (file,) = (Path(result.dataset) / "data").glob("*.parquet")
    table = pq.read_table(file).to_pylist()
    made = [[row["branch"], row["length"], row["output_tokens"]] for row in table if row["word"] == "hey"]
    apart = [["0.0", 1, 1], ["0.1", 2, 0], ["1.0", 1, 1], ["1.1", 2, 0]]
    assert made == ([["", [1, 2, 1, 2], 2]] if grouped else apart)


LETTERS = (("hey", "0", "h"), ("hey", "1", "e"), ("hey", "2", "y"), ("o", "", "o"))


class Careless(Shout):
    """Takes whatever happens to a call for a bad answer, or for an error of its own."""

    def process(self, inputs):
        try:
            (output,) = self.llm.generate([self.format_input(inputs[0])])
            (shout,) = output["generations"]
        except Exception as error:
            if self.marks > 1:
                raise ValueError("the model failed") from error
            shout = "nothing"
        yield [{"shout": shout, "length": 0}]


@pytest.mark.parametrize("marks", [1, 2])
def test_a_task_that_hides_the_death_of_its_engine_loses_no_row(tmp_path: Path, marks: int):
    entry = own_task(Careless, inputs={"word": "text"}, outputs={"shout": "text", "length": "number"})
    spec = {**tree(tmp_path / "run"), "steps": [{"task": "shout", "marks": marks}]}
    engine = {"reply": "well", "crash_on": "hey", "once_file": str(tmp_path / "crashed")}
    result = run({**spec, "model": {"path": "chaos", "engine": engine}}, in_process=True, tasks={"shout": entry})
    assert (tmp_path / "crashed").exists()
    (file,) = (Path(result.dataset) / "data").glob("*.parquet")
    assert pq.read_table(file)["shout"].to_pylist() == ["well", "well"]


ODD_OUTPUTS = {
    "a number past any float": {"length": 10**400, "talk": []},
    "a message without a role": {"length": 1, "talk": [{"content": "x"}]},
    "a message of parts": {"length": 1, "talk": [{"role": "user", "content": ["x"]}]},
    "a message that is none": {"length": 1, "talk": ["x"]},
    "text for a number": {"length": "1", "talk": []},
    "none": {"length": None, "talk": []},
    "half a character": {"length": 1, "talk": [{"role": "user", "content": "\ud800"}]},
    "fine": {"length": 1, "talk": [{"role": "user", "content": "x"}]},
}


class Odd(Shout):
    """Gives what the row asks for."""

    @property
    def outputs(self):
        return ["length", "talk"]

    def process(self, inputs):
        yield [{**row, **ODD_OUTPUTS[row["word"]]} for row in inputs]


def test_what_a_column_cannot_hold_rejects_its_row_alone(tmp_path: Path):
    entry = own_task(Odd, inputs={"word": "text"}, outputs={"length": "number", "talk": "conversation"})
    job = {**tree(tmp_path), "steps": [{"task": "odd"}], "source": {"rows": [{"word": name} for name in ODD_OUTPUTS]}}
    result = run(job, in_process=True, tasks={"odd": entry})
    assert result.progress.ok == 1
    assert result.progress.reasons == {
        "invalid_output": 3,
        "invalid_text": 1,
        "task_error:KeyError": 1,
        "task_error:OverflowError": 1,
        "task_error:TypeError": 1,
    }


def test_the_page_about_a_run_needs_none_of_its_tasks(tmp_path: Path):
    result = run(tree(tmp_path), tasks={"shout": ENTRY}, in_process=True)
    page = Path(write_report(open_store(str(tmp_path)))).read_text()
    assert "task: shout" in page
    assert f"<b>{result.version.kept}</b>rows in the dataset" in page


def test_it_is_merged_again_and_looked_at_without_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shorten = own_task(Shorten, inputs={"word": "text"}, outputs={"short": "text", "long": "boolean"})
    words = ("hello", "bad", "ho", "hello!", "wellington")
    job = {
        **tree(tmp_path / "run"),
        "source": {"rows": [{"word": word} for word in words]},
        "steps": [{"task": "shorten", "length": 3}, {"task": "shout", "input_mappings": {"word": "short"}}],
        "merge": {"near": False, "prompt": "short", "answer": "shout", "keep": {"long": True}},
    }
    run(job, in_process=True, tasks={"shorten": shorten, "shout": ENTRY})
    path = str(tmp_path / "run")

    def kept() -> list[str]:
        version = latest_version(LocalStore(path))
        assert version is not None
        rows = pq.read_table(publish_folder(LocalStore(path), version, tmp_path / "out") / "data").to_pylist()
        assert all(row["messages"][1]["content"] == row["shout"] for row in rows)
        return [row["word"] for row in rows]

    assert kept() == ["hello", "wellington"]
    assert main(["dropped", path, "--json"]) == 0
    dropped = {row["word"]: row["reason"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert dropped == {"ho": "filtered: long", "hello!": "exact duplicate"}
    assert main(["merge", path]) == 0
    assert "version 1;" in capsys.readouterr().out, "what it merges to is what the run merged to"
    assert main(["merge", path, "--set", "merge.exact=false", "--set", "merge.keep.length.max=4"]) == 0
    assert kept() == ["hello", "hello!", "wellington"]
    # With a job as earlier code kept it.
    saved = unseal(Path(path, "job.json").read_bytes(), JOB_FORMAT)
    del saved["own_tasks"]
    Path(path, "job.json").write_bytes(seal(saved, JOB_FORMAT))
    capsys.readouterr()
    assert main(["merge", path]) == 2
    assert "unknown task 'shorten'" in capsys.readouterr().err


def test_a_seed_value_that_a_task_cannot_read_rejects_its_row_alone(tmp_path: Path):
    talk = [{"role": "user", "content": "hello"}]
    rows = [{"messages": talk}, {"messages": [*talk, None]}, {"messages": [{"role": "user", "content": None}]}]
    job = {**tree(tmp_path), "steps": [{"task": "chat_generation"}], "source": {"rows": rows}}
    result = run(job, in_process=True)
    assert (result.progress.ok, result.progress.reasons) == (1, {"invalid_conversation": 2})


def test_a_list_that_may_be_absent_may_be_empty_too(tmp_path: Path):
    entry = own_task(
        Shout, inputs={"word": "text", "hints": "list[text]?"}, outputs={"shout": "text", "length": "number"}
    )
    hints = (["loud"], [], None, [None, "loud"])
    job = {
        **tree(tmp_path / "run"),
        "source": {"rows": [{"word": str(index), "hints": each} for index, each in enumerate(hints)]},
    }
    progress = run(job, in_process=True, tasks={"shout": entry}).progress
    assert (progress.ok, dict(progress.reasons)) == (3, {"missing_input:hints": 1})


def test_yaml_alone_knows_no_own_task(tmp_path: Path):
    with pytest.raises(JobError, match=r"unknown task 'shout'.*; one of your own runs from Python, by own_task$"):
        Job.of(tree(tmp_path))
    with pytest.raises(JobError, match="unknown task"):
        Job.of({**tree(tmp_path), "steps": [{"task": "os.system"}]}, tasks={"shout": ENTRY})


@pytest.mark.cluster
def test_an_own_task_travels_to_its_actor(tmp_path: Path):
    assert run(tree(tmp_path / "run"), tasks={"shout": ENTRY}).progress.ok == 2


MODULE = """
from distilabel.steps import Step, StepInput

class Cut(Step):
    'Cuts words.'

    @property
    def inputs(self):
        return ["word"]

    @property
    def outputs(self):
        return ["short"]

    def process(self, inputs: StepInput):
        yield [{**row, "short": row["word"][:1]} for row in inputs]
"""


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskSpec]:
    """A step in a module that Python finds because the driver has added a folder to its path."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "own_cut.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    yield own_task(importlib.import_module("own_cut").Cut, inputs={"word": "text"}, outputs={"short": "text"})
    del sys.modules["own_cut"]


@pytest.mark.cluster
def test_a_module_in_a_folder_that_was_added_to_the_path_is_found_by_actors(tmp_path: Path, cut: TaskSpec):
    result = run({**tree(tmp_path / "run"), "steps": [{"task": "cut"}]}, tasks={"cut": cut})
    (file,) = (Path(result.dataset) / "data").glob("*.parquet")
    assert pq.read_table(file)["short"].to_pylist() == ["h", "h"]


def packed(tmp_path: Path, task: TaskSpec) -> Parcel:
    """A job with a task of one's own, on its way to an actor."""
    job = Job.of({**tree(tmp_path / "run"), "steps": [{"task": "own"}]}, tasks={"own": task})
    plan, _ = plan_run(job)
    return Parcel.of(HostConfig(job, plan, str(tmp_path / "run"), 0))


def test_a_module_that_an_actor_does_not_find_is_named(tmp_path: Path, cut: TaskSpec):
    parcel = packed(tmp_path, cut)
    assert str(tmp_path / "lib") in parcel.paths
    assert not [path for path in parcel.paths if "site-packages" in path or path.startswith(sys.base_prefix)]
    assert parcel.opened().job.steps[0].spec.summary == "Cuts words."
    del sys.modules["own_cut"]
    sys.path.remove(str(tmp_path / "lib"))
    with pytest.raises(EngineStartError, match="No module named 'own_cut'; what your own tasks and steps import"):
        replace(parcel, paths=()).opened()
    assert parcel.opened().job.steps[0].spec.summary == "Cuts words."


def test_a_class_that_cannot_be_sent_is_told_before_any_engine_starts(tmp_path: Path):
    lock = Lock()
    locked = type("Locked", (Shout,), {"__module__": "__main__", "format_input": lambda self, row: [lock]})
    with pytest.raises(UserError, match=r"tasks: a class of your own cannot be sent .*: cannot pickle '_thread.lock'"):
        packed(tmp_path, own_task(locked, inputs={"word": "text"}, outputs={"shout": "text"}))
