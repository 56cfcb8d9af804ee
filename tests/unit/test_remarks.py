"""What is said of a job that may run as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen import Job, run
from batchgen.cli import main
from batchgen.remarks import remarks
from tests.helpers import chaos_job, planned
from tests.unit.test_own_tasks import ENTRY

ELSEWHERE = (
    "goes to the model as it stands: only a `template` is filled; a fill_template step writes system prompts that "
    "differ from row to row (output_mappings: {text: system_prompt})"
)
ROW = {"instruction": "a", "role": "cook", "system": "b"}


@pytest.mark.parametrize(
    ("step", "noted"),
    [
        ({"system_prompt": "You are a {{ role }}."}, [f"system_prompt: {{{{ role }}}} {ELSEWHERE}"]),
        ({"system_prompt": "You are a {role}, {{role}} or {role}."}, ["{role}", "{{role}}"]),
        ({"system_prompt": 'You are {{ nobody }}, {{ role }, { "role": 1 }.'}, []),
        ({"template": "Be {{ role }}: {{ instruction }}", "keep_prompt": True}, []),
        (
            {"template": "Be {role}: {{ instruction }}", "keep_prompt": True},
            ["template: {role} goes to the model as it stands: a placeholder has two braces, {{ role }}"],
        ),
        (
            {
                "task": "magpie",
                "system_prompt": {"x": ["{{ role }}", 1.0]},
                "output_mappings": {"instruction": "asked"},
            },
            [f"system_prompt.x[0]: {{{{ role }}}} {ELSEWHERE}"],
        ),
        ({"input_mappings": {"instruction": "role"}}, []),
        ({}, []),
    ],
)
def test_placeholders_that_nothing_fills_are_told(tmp_path: Path, step: dict, noted: list[str]):
    job = chaos_job(tmp_path, source={"rows": [ROW]}, steps=[{"task": "text_generation"} | step])
    plan, _, _ = planned(job)
    found = remarks(job, plan)
    assert len(found) == len(noted)
    for line, each in zip(found, noted, strict=True):
        assert line.startswith("steps[0].")
        assert each in line


SPELLED = ": holds a backslash and an n, where YAML reads a line break in double quotes alone"


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        (r"Q: {{ role }}\nA:", True),
        (r"Q: {{ role }}\n\n", True),
        (r"Q: {{ role }}\n", True),
        ("Q: {{ role }}\nA:", False),
        (r"{{ role }}: \nabla, \theta, \N, n", False),
    ],
)
def test_line_breaks_that_are_spelled_are_told(tmp_path: Path, text: str, noted: bool):
    step = {"task": "text_generation", "template": text, "keep_prompt": True, "sampling": {"stop": ["x", text]}}
    structured = {"structured_outputs": {"regex": r"a\n"}}
    job = chaos_job(tmp_path, source={"rows": [ROW]}, steps=[step], sampling={"stop": text, **structured})
    fields = ["sampling.stop", "steps[0].sampling.stop[1]", "steps[0].template"]
    assert remarks(job, planned(job)[0]) == ([field + SPELLED for field in fields] if noted else [])


def test_a_spelled_line_break_in_what_opens_a_user_turn_is_told(tmp_path: Path):
    steps = [{"task": "magpie"}, {"task": "text_generation", "model": "judge"}]
    models = {"judge": {"path": "chaos", "pre_query_template": "<|user|>\n"}}
    model = {"path": "chaos", "pre_query_template": r"<|user|>\n"}
    job = chaos_job(tmp_path / "one", source={"count": 1}, model=model, models=models, steps=steps)
    assert remarks(job, planned(job)[0]) == ["model.pre_query_template" + SPELLED]
    job = chaos_job(tmp_path / "two", source={"count": 1}, model=models["judge"], models={"judge": model}, steps=steps)
    assert remarks(job, planned(job)[0]) == ["models.judge.pre_query_template" + SPELLED]


def test_a_column_of_an_earlier_step_counts_and_own_tasks_fill_their_own(tmp_path: Path):
    answer = {"task": "text_generation", "output_mappings": {"generation": "draft"}}
    again = {"task": "text_generation", "system_prompt": "{{ draft }}", "input_mappings": {"instruction": "draft"}}
    job = chaos_job(tmp_path, source={"rows": [ROW]}, steps=[answer, again])
    assert [line[:23] for line in remarks(job, planned(job)[0])] == ["steps[1].system_prompt:"]
    tree = {
        "name": "own",
        "source": {"rows": [{"word": "a"}]},
        "model": {"path": "chaos"},
        "output": str(tmp_path / "own"),
    }
    own = Job.of({**tree, "steps": [{"task": "shout", "mark": "{{ word }}"}]}, tasks={"shout": ENTRY})
    assert remarks(own, planned(own)[0]) == []


@pytest.mark.parametrize(
    ("steps", "merge", "noted"),
    [
        ([{"template": "{{ role }}"}], {}, True),
        ([{"template": "{{ role }}", "keep_prompt": True}], {}, False),
        ([{"template": "{{ role }}"}], {"prompt": "role", "answer": "generation"}, False),
        ([{"template": "{{ role }}"}], {"columns": ["generation"]}, False),
        ([{"template": "{{ role }}"}, {"output_mappings": {"generation": "more"}}], {}, False),
        ([{}], {}, False),
    ],
)
def test_a_template_that_leaves_rows_without_messages_is_told(tmp_path: Path, steps: list, merge: dict, noted: bool):
    steps = [{"task": "text_generation", **step} for step in steps]
    job = chaos_job(tmp_path, source={"rows": [ROW]}, steps=steps, merge=merge)
    line = "steps[0].template: what it comes to is in no column, so that the rows have no messages; "
    assert remarks(job, planned(job)[0]) == [line + "keep_prompt: true adds it as `full_prompt`"] * noted


SAME_ROWS = "sampling: temperature: 0 has every row say the same, as magpie reads nothing of a row here"


@pytest.mark.parametrize(
    ("step", "sampling", "noted"),
    [
        ({"task": "magpie"}, {"temperature": 0}, [SAME_ROWS]),
        ({"task": "magpie"}, {"temperature": 0.0}, [SAME_ROWS]),
        ({"task": "magpie"}, {"top_k": 1}, [SAME_ROWS.replace("temperature: 0", "top_k: 1")]),
        ({"task": "magpie", "sampling": {"temperature": 0.7}}, {"temperature": 0}, []),
        ({"task": "magpie", "system_prompt": "Be brief."}, {"temperature": 0}, [SAME_ROWS]),
        ({"task": "magpie", "system_prompt": ["Be brief.", "Be kind."]}, {"temperature": 0}, []),
        ({"task": "magpie", "input_mappings": {"system_prompt": "system"}}, {"temperature": 0}, []),
        ({"task": "magpie"}, {"temperature": 0.1}, []),
        ({"task": "magpie"}, {}, []),
        ({"task": "text_generation"}, {"temperature": 0}, []),
        (
            {"task": "drop_duplicates", "sampling": {"temperature": 0.5}},
            {"temperature": 0},
            ["sampling: means nothing, as drop_duplicates calls no model"],
        ),
    ],
)
def test_sampling_that_makes_all_rows_the_same_or_means_nothing_is_told(
    tmp_path: Path, step: dict, sampling: dict, noted: list[str]
):
    renamed = {"output_mappings": {"instruction": "asked"}} if step["task"] == "magpie" else {}
    job = chaos_job(tmp_path, source={"rows": [ROW]}, sampling=sampling, steps=[step | renamed])
    assert remarks(job, planned(job)[0]) == [f"steps[0].{line}" for line in noted]


def test_a_remark_is_made_by_the_plan_and_as_the_run_begins(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job = chaos_job("run", source={"rows": [ROW]}, steps=[{"task": "text_generation", "system_prompt": "{{ role }}"}])
    notes: list[str] = []
    run(job, in_process=True, watch=lambda status: notes.extend(status.notes))
    assert notes == [f"steps[0].system_prompt: {{{{ role }}}} {ELSEWHERE}"]
    Path("job.yaml").write_text(json.dumps(job.tree()))
    assert main(["plan", "job.yaml"]) == 0
    assert capsys.readouterr().out.endswith(f"\nnote: {notes[0]}\n")
