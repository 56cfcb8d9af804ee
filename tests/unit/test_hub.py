"""A dataset goes to the Hub in one commit, and takes the place of nothing but an earlier one of batchgen's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchgen import run
from batchgen.cli import main
from batchgen.errors import CorruptShard, StoreError, UserError
from batchgen.hub import hub_name, publish_hub
from batchgen.merge import latest_version
from batchgen.merge.version import Version
from batchgen.store import LocalStore
from tests.helpers import chaos_job
from tests.hubserver import HubServer, hub_server

NAME = "org/made"
KEY = f"datasets/{NAME}"
DATA = "data/train-00000-of-00001.parquet"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as server:
        ask(server.url, monkeypatch)
        yield server


def ask(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the Hub's client, which reads the environment as it is imported, ask another server."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")


def made(folder: Path, rows: int = 3) -> tuple[LocalStore, Version]:
    """A run that has ended, and its dataset version."""
    asked = [{"instruction": f"Question {row}?"} for row in range(rows)]
    run(chaos_job(folder, source={"rows": asked}, steps=[{"task": "text_generation"}]), in_process=True)
    store = LocalStore(folder)
    version = latest_version(store)
    assert version is not None
    return store, version


def files(hub: HubServer) -> dict[str, bytes]:
    return dict(list(hub.repositories[KEY].commits.values())[-1])


def commits(hub: HubServer) -> int:
    return sum(request.startswith("POST") and "/commit/" in request for request in hub.requests)


@pytest.mark.parametrize("place", [f"hf://{NAME}", f"hf://datasets/{NAME}/"])
def test_a_version_goes_there_in_one_commit(
    hub: HubServer, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
):
    made(tmp_path / "run")
    assert main(["publish", str(tmp_path / "run"), "--to", place]) == 0
    assert capsys.readouterr().out == f"version 1, 3 rows: {hub.url}/{KEY}\n"
    dataset = tmp_path / "run" / "dataset"
    assert files(hub) == {name: (dataset / name).read_bytes() for name in ("README.md", DATA)}
    assert commits(hub) == 1


def test_an_earlier_one_is_replaced_and_what_is_others_stays(hub: HubServer, tmp_path: Path):
    others = {".gitattributes": b"", "LICENSE": b"mine", "data/test.parquet": b"mine", "plot.png": b"mine"}
    publish_hub(*made(tmp_path / "first"), NAME)
    many = {f"data/train-{number:05d}-of-00002.parquet": b"of an earlier one" for number in range(2)}
    hub.add("datasets", NAME, {**files(hub), **many, **others})
    store, version = made(tmp_path / "second", 5)
    publish_hub(store, version, NAME)
    dataset = tmp_path / "second" / "dataset"
    assert files(hub) == {**others, **{name: (dataset / name).read_bytes() for name in ("README.md", DATA)}}


def test_a_card_that_was_edited_stays_with_its_data(hub: HubServer, tmp_path: Path):
    publish_hub(*made(tmp_path / "first"), NAME)
    edited = files(hub)["README.md"] + b"\nA word of my own.\n"
    hub.add("datasets", NAME, {**files(hub), "README.md": edited})
    publish_hub(*made(tmp_path / "again"), NAME)
    assert files(hub)["README.md"] == edited
    before = commits(hub)
    with pytest.raises(UserError, match=rf"hf://{NAME}: its README\.md was edited"):
        publish_hub(*made(tmp_path / "second", 5), NAME)
    hub.add("datasets", NAME, {"README.md": b"---\nlicense: mit\n---\n"})
    with pytest.raises(UserError, match=r"its README\.md is not batchgen's, and would be written over"):
        publish_hub(*made(tmp_path / "third"), NAME)
    assert commits(hub) == before, "nothing was uploaded"


@pytest.mark.parametrize("large", [True, False])
def test_of_large_files_the_hub_tells_another_digest(
    hub: HubServer, tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
):
    store, version = made(tmp_path / "run")
    publish_hub(store, version, NAME)
    edited = files(hub)["README.md"] + b"\nA word of my own.\n"
    hub.add("datasets", NAME, {**files(hub), "README.md": edited})
    digest = version.files[DATA].sha256 if large else "0" * 64
    hub.large = {DATA: digest}
    if large:
        publish_hub(store, version, NAME)
    else:
        with pytest.raises(UserError, match="was edited"):
            publish_hub(store, version, NAME)
    assert files(hub)["README.md"] == edited


def test_private_is_asked_for_where_it_is_created(hub: HubServer, tmp_path: Path):
    made(tmp_path / "run")
    for private in ([], ["--private"]):
        hub.repositories.clear()
        assert main(["publish", str(tmp_path / "run"), "--to", f"hf://{NAME}", *private]) == 0
    # As the client says it in its versions.
    said = [given.get("private") or given.get("visibility") == "private" for given in hub.created]
    assert said == [False, True]


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (401, UserError, "the Hub does not let this token write there; set HF_TOKEN, or use `hf auth login`"),
        (403, UserError, "the Hub does not let this token write there"),
        (412, StoreError, "somebody has committed to it in this moment; try again"),
        (418, StoreError, "the Hub answers 418"),
    ],
)
def test_what_the_hub_says_is_told(hub: HubServer, tmp_path: Path, status: int, error: type[Exception], said: str):
    hub.refuses = status
    with pytest.raises(error, match=rf"^hf://{NAME}: {said}") as raised:
        publish_hub(*made(tmp_path / "run"), NAME)
    assert "canary" not in str(raised.value)


def test_a_hub_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    store, version = made(tmp_path / "run")
    ask(nobody, monkeypatch)
    with pytest.raises(StoreError, match=rf"^hf://{NAME}: the upload failed: .*[Cc]onnection refused"):
        publish_hub(store, version, NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        publish_hub(store, version, NAME)


def test_a_damaged_version_is_not_uploaded(hub: HubServer, tmp_path: Path):
    store, version = made(tmp_path / "run")
    store.path(version.files[DATA].key).write_bytes(b"x" * version.files[DATA].size)
    with pytest.raises(CorruptShard):
        publish_hub(store, version, NAME)
    assert hub.requests == []


@pytest.mark.parametrize("target", ["hf://", "hf://made", "hf://a/b/c", "hf://org/../x", "hf://models/org/made"])
def test_what_is_no_name_of_a_dataset_is_refused(target: str):
    with pytest.raises(UserError, match="which is hf://ORG/NAME"):
        hub_name(target)


def test_a_folder_is_no_name_and_has_no_privacy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert hub_name("runs/x") is None
    made(tmp_path / "run")
    assert main(["publish", str(tmp_path / "run"), "--to", str(tmp_path / "out"), "--private"]) == 2
    assert "--private is for a dataset of the Hub" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_dataset_has_nothing_to_upload(hub: HubServer, tmp_path: Path, capsys: Any):
    made(tmp_path / "run")
    for path in (tmp_path / "run" / "versions").glob("*.json"):
        path.unlink()
    assert main(["publish", str(tmp_path / "run"), "--to", f"hf://{NAME}"]) == 2
    assert "no dataset version; merge first" in capsys.readouterr().err
    assert hub.requests == []
