"""What the README says of keys, defaults, commands and files is what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import batchgen
from batchgen.api import stall_after
from batchgen.cli import build_parser
from batchgen.job import Job, Merge, Source
from batchgen.model import Model
from batchgen.step import Step
from batchgen.tasks.listing import markdown
from tests.helpers import chaos_job

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cluster/README.md", "tests/bench/README.md")


def section(heading: str) -> str:
    """The text of a section, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def first_cells(table: str) -> list[str]:
    """The names in backquotes that stand in the first column of a table."""
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def test_the_table_of_a_job_s_keys_has_all_of_them_and_no_other():
    parts = {f"model.{name}" for name in Model.model_fields}
    assert sorted(first_cells(section("The job"))) == sorted(Job.model_fields.keys() - {"model"} | parts)


def test_the_table_of_a_step_s_keys_has_all_of_them_and_no_other():
    table = section("Steps").partition("<!-- tasks")[0]
    assert sorted(first_cells(table)) == sorted(["n", "sampling", *Step.model_fields.keys() - {"task"}])


@pytest.mark.parametrize("name", Source.model_fields)
def test_each_key_of_a_source_is_told(name: str):
    assert re.search(rf"`{name}\b", section("Seed rows"))


def test_the_defaults_of_what_a_run_waits_for_are_the_job_s():
    told = dict(re.findall(r"^- `(\w+)`, (\d+)\b", section("Waiting and giving up"), re.MULTILINE))
    assert told.keys() == {
        "outage_seconds",
        "stall_seconds",
        "start_seconds",
        "max_engine_deaths",
        "fail_after_rejected",
    }
    assert {name: float(value) for name, value in told.items()} == {
        name: float(Job.model_fields[name].default or stall_after(chaos_job("run"))) for name in told
    }


def test_the_defaults_of_a_merge_are_its_own():
    told: dict[str, Any] = yaml.safe_load(re.search(r"`(merge: \{.*\})`", section("Merge"))[1])["merge"]
    defaults = Merge().model_dump()
    assert told == {name: defaults[name] for name in told}
    assert all(f"`{name}`" in section("Merge") or name in told for name in defaults)


def test_the_table_of_commands_has_all_of_them_with_options_that_exist():
    commands = next(action for action in build_parser()._actions if action.dest == "command").choices
    usages = {usage.split()[1]: usage for usage in re.findall(r"^\| `(batchgen [^`]+)`", README, re.MULTILINE)}
    assert usages.keys() == commands.keys()
    for name, usage in usages.items():
        options = {option for action in commands[name]._actions for option in action.option_strings}
        assert set(re.findall(r"--[a-z-]+", usage)) <= options, usage


def test_the_table_of_tasks_is_the_step_table():
    assert f"-->\n{markdown()}\n<!-- /tasks -->" in README, "put in what `batchgen tasks --markdown` prints"


def test_the_first_job_is_one():
    job = Job.of(yaml.safe_load(re.search(r"```yaml\n(# my-job.yaml\n.*?)```", README, re.DOTALL)[1]))
    assert (job.name, job.output) == ("magpie-math", "runs/magpie-math")


def test_its_python_names_what_there_is():
    codes = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    nodes = [node for code in codes for node in ast.walk(ast.parse(code))]
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "batchgen"}
    assert {"Job", "run", "show_progress", "from_pipeline"} == imported | used <= set(batchgen.__all__)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_its_files_and_links_are_there(name: str):
    text = (ROOT / name).read_text()
    for path in re.findall(r"`((?:batchgen|cluster|jobs|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for file, anchor in re.findall(r"\]\((?!https?:)([\w./-]*)(?:#([\w-]+))?\)", text):
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.is_file(), target
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
