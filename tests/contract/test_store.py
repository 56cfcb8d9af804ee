"""The store contract, on every backend."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import socket
import stat
import tempfile
import uuid
from pathlib import Path

import pytest

from batchgen.errors import StoreError, UserError
from batchgen.store import LocalStore, ObjectStore, open_store, probe
from tests.s3server import LOSE_ANSWER, SLOW, TEAR_ANSWER, S3Server, environment, s3_server

ROUNDS = 200
RACERS = 16


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    request.getfixturevalue("server")
    return open_store("s3://bucket/some/prefix")


def test_what_is_put_is_read(store: ObjectStore):
    assert store.read("a/b") is None
    assert store.put_if_absent("a/b", b"one")
    assert store.read("a/b") == b"one"
    with store.open("a/b") as file:
        assert file.read() == b"one"


def test_many_are_read_in_order_and_never_all_at_once(store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    keys = [f"k/{index}" for index in range(100)]
    for key in keys:
        store.put_if_absent(key, key.encode())
    store.delete("k/7")
    read, single = [], type(store).read
    monkeypatch.setattr(type(store), "read", lambda self, key: (read.append(key), single(self, key))[1])
    coming = store.read_many(keys)
    assert next(coming) == b"k/0"
    assert len(read) < 50, "what is read ahead is held in memory"
    assert list(coming) == [None if key == "k/7" else key.encode() for key in keys[1:]]
    assert sorted(read) == sorted(keys)
    assert list(store.read_many([])) == []


def test_nothing_is_replaced(store: ObjectStore):
    assert store.put_if_absent("a", b"one")
    assert not store.put_if_absent("a", b"two")
    assert store.read("a") == b"one"


def test_uploads_appear_whole_and_their_source_is_gone(store: ObjectStore, tmp_path: Path):
    source = tmp_path / "file"
    source.write_bytes(b"x" * 1000)
    store.upload("deep/er/key", source)
    assert store.read("deep/er/key") == b"x" * 1000
    assert not source.exists()


def test_keys_are_listed_in_order_without_unfinished_ones(store: ObjectStore, tmp_path: Path):
    for key in ("c/2", "c/10", "c/1", "d/1"):
        store.put_if_absent(key, b"")
    if isinstance(store, LocalStore):
        store.path("c/.1.partial").write_bytes(b"")
    assert list(store.list("c")) == ["c/1", "c/10", "c/2"]
    assert list(store.list("nothing")) == []
    assert list(store.list("")) == ["c/1", "c/10", "c/2", "d/1"]


def test_deleting_is_idempotent(store: ObjectStore):
    store.put_if_absent("a", b"")
    store.delete("a")
    store.delete("a")
    assert store.read("a") is None
    with pytest.raises(FileNotFoundError):
        store.open("a")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "", "a/./b", "a\0b", ".."])
def test_no_key_leaves_the_store(store: ObjectStore, key: str):
    with pytest.raises(ValueError, match="not a key"):
        store.put_if_absent(key, b"")


def _race(location: str, barrier, wins) -> None:
    store = open_store(location)
    for round_ in range(ROUNDS):
        barrier.wait()
        if store.put_if_absent(f"race/{round_}", multiprocessing.current_process().name.encode()):
            with wins.get_lock():
                wins[round_] += 1


def test_of_many_processes_exactly_one_creates_an_object(store: ObjectStore):
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(RACERS), context.Array("i", ROUNDS)
    racers = [context.Process(target=_race, args=(store.location, barrier, wins)) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(240)
    assert list(wins) == [1] * ROUNDS


def test_a_store_that_fails_says_so(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        LocalStore(tmp_path / "file").put_if_absent("a", b"")


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), OSError(errno.ESTALE, "Stale file handle")])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    """The shards in it would count as not committed, and be generated again."""
    store, scandir = LocalStore(tmp_path), os.scandir
    for key in ("a/1/x", "a/2/x"):
        store.put_if_absent(key, b"")

    def failing(folder: str | os.PathLike[str]):
        if os.fspath(folder).endswith("a/2"):
            raise error
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(StoreError, match="cannot list") as caught:
        list(store.list("a"))
    assert caught.value.denied == isinstance(error, PermissionError)


def test_a_link_that_was_made_and_reported_as_there_already_is_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So NFS does when the server's answer is lost and the client asks again."""
    store, link = LocalStore(tmp_path), os.link

    def lost(own: Path, target: Path) -> None:
        link(own, target)
        link(own, target)

    monkeypatch.setattr(os, "link", lost)
    assert store.put_if_absent("a", b"one")
    assert not store.put_if_absent("a", b"one"), "another's, of the same bytes"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StoreError), (errno.EIO, StoreError), (errno.EROFS, UserError)]
)
def test_what_may_work_in_a_while_is_no_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
):
    """A run that a full disk, or a file server, has stopped would not be tried again by who goes by the exit code."""

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(kind, match=os.strerror(number)) as caught:
        probe(LocalStore(tmp_path))
    assert type(caught.value) is kind


def test_a_file_that_was_made_and_reported_as_there_already_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The kernel makes it once more where it was told of a stale handle."""
    name = uuid.uuid4()
    monkeypatch.setattr("batchgen.store.local.uuid.uuid4", lambda: name)
    (tmp_path / f".a.{name.hex}").write_bytes(b"")
    assert LocalStore(tmp_path).put_if_absent("a", b"one")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"one")]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(UserError, match="has no hard links"):
        probe(LocalStore(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


class Disk:
    """What power loss leaves of a folder: files as they were last flushed, under the names that were flushed."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root.stat().st_ino
        self._flushed: dict[int, bytes | dict[str, int]] = {}
        fsync = os.fsync

        def watched(descriptor: int) -> None:
            fsync(descriptor)
            status = os.fstat(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}")
            if stat.S_ISDIR(status.st_mode):
                self._flushed[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
            else:
                self._flushed[status.st_ino] = path.read_bytes()

        monkeypatch.setattr(os, "fsync", watched)

    def left(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        folders = [("", self._root)]
        while folders:
            prefix, inode = folders.pop()
            names = self._flushed.get(inode, {})
            assert isinstance(names, dict)
            for name, other in names.items():
                kept = self._flushed.get(other, b"")
                if isinstance(kept, dict):
                    folders.append((f"{prefix}{name}/", other))
                else:
                    found[f"{prefix}{name}"] = kept
        return found


@pytest.mark.parametrize("scratch", [None, "/dev/shm"])
def test_what_was_written_outlives_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: str | None
):
    with tempfile.TemporaryDirectory(dir=scratch or tmp_path) as folder:
        source = Path(folder) / "x"
        source.write_bytes(b"rows")
        disk = Disk(tmp_path, monkeypatch)
        store = open_store(str(tmp_path / "runs" / "run"))
        store.upload("attempts/000001/x.parquet", source)
        assert disk.left()["runs/run/attempts/000001/x.parquet"] == b"rows"
        assert store.put_if_absent("commits/000001/0000.json", b"manifest")
        assert disk.left()["runs/run/commits/000001/0000.json"] == b"manifest"
        assert not store.put_if_absent("commits/000001/0000.json", b"another's")
        store.put("job.json", b"one")
        store.put("job.json", b"two")
    assert {key: data for key, data in disk.left().items() if key.startswith("runs/")} == {
        "runs/run/attempts/000001/x.parquet": b"rows",
        "runs/run/commits/000001/0000.json": b"manifest",
        "runs/run/job.json": b"two",
    }


def test_what_is_put_again_is_replaced(store: ObjectStore):
    store.put("a/b", b"one")
    store.put("a/b", b"two")
    assert store.read("a/b") == b"two"
    assert (store.size("a/b"), store.size("a/c")) == (3, 0)


def test_many_keys_are_all_listed(store: ObjectStore):
    keys = [f"many/{number:04d}" for number in range(250)]
    for key in keys:
        store.put(key, b"")
    store.put("many-others/x", b"")
    assert list(store.list("many")) == keys


def test_a_store_travels_to_another_process(store: ObjectStore):
    store.put("a", b"one")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"one"
    assert open_store(store.location).read("a") == b"one"


def test_a_good_store_passes_the_probe_and_keeps_nothing_of_it(store: ObjectStore, request: pytest.FixtureRequest):
    probe(store)
    if isinstance(store, LocalStore):
        assert list(store.root.iterdir()) == []
    else:
        assert request.getfixturevalue("server").objects == {}


def on_another_disk(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a file's move fail as between two file systems: a machine's own disk, and the one that all share."""
    replace = Path.replace

    def move(self: Path, target: Path) -> Path:
        if self == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", move)


def test_a_file_of_another_disk_is_copied_and_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, store = tmp_path / "scratch", open_store(str(tmp_path / "store"))
    source.write_bytes(b"x" * 1000)
    on_another_disk(source, monkeypatch)
    store.upload("deep/er/key", source)
    assert store.read("deep/er/key") == b"x" * 1000
    assert not source.exists()
    assert [path.name for path in (tmp_path / "store" / "deep" / "er").iterdir()] == ["key"]


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A commit is tried again and again while a disk is full: its halves are not to fill it up."""
    source, store = tmp_path / "scratch", open_store(str(tmp_path / "store"))
    source.write_bytes(b"x" * 1000)
    on_another_disk(source, monkeypatch)

    def full(_: Path, target: Path) -> None:
        target.write_bytes(b"x" * 500)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.upload("deep/er/key", source)
    assert list((tmp_path / "store" / "deep" / "er").iterdir()) == []
    assert source.exists()


def test_a_large_file_goes_up_in_parts(server: S3Server, tmp_path: Path):
    source = tmp_path / "large"
    data = bytes(range(256)) * 50_000
    source.write_bytes(data)
    open_store("s3://bucket/run").upload("attempts/x.parquet", source)
    assert server.objects["bucket/run/attempts/x.parquet"] == data
    assert sum(method == "PUT" for method, _ in server.requests) > 1
    assert server.uploads == {}


def test_a_multipart_upload_that_fails_is_aborted(server: S3Server, tmp_path: Path):
    server.fault = lambda method, key: 403 if method == "PUT" else None
    source = tmp_path / "large"
    source.write_bytes(bytes(20_000_000))
    with pytest.raises(StoreError, match="cannot write"):
        open_store("s3://bucket/run").upload("attempts/x.parquet", source)
    assert (server.aborted, server.uploads) == (1, {})


def first_time(fault: int | str, method: str):
    """The fault at the first request of a kind."""
    seen: list[str] = []

    def decide(asked: str, key: str) -> int | str | None:
        if asked == method and not seen:
            seen.append(key)
            return fault
        return None

    return decide


def test_a_lost_answer_is_not_taken_for_another_s_success(server: S3Server):
    """The client sends the request again and meets its own object."""
    server.fault = first_time(LOSE_ANSWER, "PUT")
    assert open_store("s3://bucket/run").put_if_absent("commits/000001/0000.json", b"mine")
    assert sum(method == "PUT" for method, _ in server.requests) == 2


def test_a_lost_answer_does_not_hide_another_s_success(server: S3Server):
    server.put("bucket/run/commits/000001/0000.json", b"theirs", only_if_absent=True)
    server.fault = first_time(LOSE_ANSWER, "PUT")
    assert not open_store("s3://bucket/run").put_if_absent("commits/000001/0000.json", b"mine")


@pytest.mark.parametrize("status", [409, 412])
def test_a_conflict_that_nobody_won_is_no_other_s_success(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, status: int
):
    """S3 may refuse a conditional write for one beside it that came to nothing either."""
    monkeypatch.setattr("batchgen.store.s3._RETRY_SECONDS", 0)
    server.fault = first_time(status, "PUT")
    assert open_store("s3://bucket/run").put_if_absent("commits/000001/0000.json", b"mine")
    assert server.objects["bucket/run/commits/000001/0000.json"] == b"mine"
    monkeypatch.setattr("batchgen.store.s3._CONFLICTS", 3)
    server.requests.clear()
    server.fault = lambda method, key: status if method == "PUT" else None
    with pytest.raises(StoreError, match="another writer keeps getting in the way") as caught:
        open_store("s3://bucket/run").put_if_absent("commits/000002/0000.json", b"mine")
    assert caught.value.busy, "it may pass"
    assert sum(method == "PUT" for method, _ in server.requests) == 3


@pytest.mark.parametrize("fault", [500, 503, SLOW])
def test_a_store_that_fails_now_and_then_or_is_slow_is_asked_again(server: S3Server, fault: int | str):
    store = open_store("s3://bucket/run")
    for method in ("PUT", "GET"):
        server.fault = first_time(fault, method)
        store.put("a", b"one") if method == "PUT" else None
        assert store.read("a") == b"one"


@pytest.mark.parametrize("fault", [400, TEAR_ANSWER], ids=["a body too slow", "a torn answer"])
def test_what_the_client_gives_up_at_once_is_asked_again(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: int | str
):
    """A 400 RequestTimeout, and an answer that ends in its midst: AWS's own clients send either again."""
    monkeypatch.setattr("batchgen.store.s3._PAUSES", (0.01, 0.01))
    store = open_store("s3://bucket/run")
    large = bytes(range(256)) * 50_000

    def upload() -> None:
        (tmp_path / "large").write_bytes(large)
        store.upload("attempts/x", tmp_path / "large")

    for method, ask, expected in (
        ("PUT", lambda: store.put("a", b"one two three"), None),
        ("PUT", lambda: store.put_if_absent("commits/1", b"mine"), True),
        ("PUT", upload, None),
        ("POST", upload, None),
        ("GET", lambda: store.read("a"), b"one two three"),
        ("GET", lambda: store.read("attempts/x") == large, True),
        ("GET", lambda: list(store.list("")), ["a", "attempts/x", "commits/1"]),
        ("POST", lambda: store.delete("a"), None),
    ):
        server.fault = first_time(fault, method)
        assert ask() == expected
    assert sorted(server.objects) == ["bucket/run/attempts/x", "bucket/run/commits/1"]
    assert server.objects["bucket/run/attempts/x"] == large
    assert not any(server.uploads.values()), "an upload whose number was never told has no parts that cost anything"

    server.fault = lambda method, key: fault if method == "GET" else None
    server.requests.clear()
    with pytest.raises(StoreError, match="cannot list s3://bucket/run/: ") as caught:
        list(store.list(""))
    assert caught.value.busy, "it may pass"
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [403, 507])
def test_a_store_that_refuses_says_so_without_its_secrets(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, status: int
):
    monkeypatch.setattr("batchgen.store.s3._RETRY_SECONDS", 0)
    server.fault = lambda method, key: status
    store = open_store("s3://bucket/run")
    for call, what in ((lambda: store.put_if_absent("a", b"one"), "write"), (lambda: store.read("a"), "read")):
        with pytest.raises(StoreError) as caught:
            call()
        assert f"cannot {what} s3://bucket/run/a" in str(caught.value)
        assert str(status) in str(caught.value)
        assert "canary" not in str(caught.value)
        assert (caught.value.denied, caught.value.busy) == (status == 403, status == 507)
    # What is no fault of anybody's input must not be told as one: a scheduler gives a run that stopped another try.
    with pytest.raises(UserError if status == 403 else StoreError, match="s3://bucket/run"):
        probe(store)


def test_a_store_that_is_not_reached_says_why(server: S3Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.store.s3._RETRY_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for url, why, passes in (
        (closed, "connection refused", True),
        ("http://nobody.invalid:1", "there is no such host", False),
    ):
        for name, value in {**environment(server), "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StoreError, match=f"cannot read s3://bucket/run/a: GenericError: {why}$") as caught:
            open_store("s3://bucket/run").read("a")
        assert caught.value.busy == passes


def test_a_store_that_does_not_exclude_is_refused(monkeypatch: pytest.MonkeyPatch):
    with s3_server(exclusive=False) as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="lets two writers create one object"):
            probe(open_store("s3://bucket/run"))


@pytest.mark.parametrize("location", ["s3://", "s3://B_ucket/x", "s3:///x"])
def test_a_location_that_is_none_is_refused(location: str):
    with pytest.raises(UserError, match="it must read s3://bucket/prefix"):
        open_store(location)
