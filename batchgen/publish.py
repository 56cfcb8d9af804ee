"""Publishes a dataset version to a folder."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from batchgen.card import is_card, is_edited, render_configs
from batchgen.errors import StoreError, UserError, is_passing
from batchgen.faultpoints import reach
from batchgen.merge.version import CARD, Version, copy_file, read_file
from batchgen.paths import resolved
from batchgen.store.base import ObjectStore
from batchgen.store.local import flush

_DAY = 24 * 3600.0
EDITED = f"its {CARD} was edited, and would be written over by that of other data; it was left as it is: move it away"
# What programs leave in folders that they look at or load from.
_LITTER = {".cache", ".DS_Store"}
# A data file, also of one of several configs.
_PUBLISHED = re.compile(r"data/([^/]+/)?train-\d{5,}-of-\d{5,}\.parquet")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
# `load_dataset` takes the one for a choice of characters, the other for a chain of file systems.
_UNLOADABLE = re.compile(r"\[[^/\]]+\]|::")


def is_published(path: str) -> bool:
    """Whether a path within a dataset is that of a data file of batchgen's."""
    return _PUBLISHED.fullmatch(path) is not None


def publish_folder(store: ObjectStore, version: Version, folder: str | Path) -> Path:
    """Puts a version's files into a folder, all at once, in the place of an earlier version.

    Raises:
        UserError: the folder holds something that is no dataset.
        CorruptShard: a file of the version is not what was merged.
    """
    with _replacing(folder) as (fresh, target):
        for name in version.files:
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            copy_file(store, version, name, path)
        reach("dataset copied")
    return target


def publish_store(store: ObjectStore, version: Version) -> str:
    """Puts a version's files beside the run, under `dataset/`, in the place of an earlier version.

    A bucket has no folders that could be swapped: data files appear before the card, and those of an earlier version go
    last. Who reads meanwhile may see both; `publish --to` a place of its own where that matters.

    Returns:
        The dataset's location.

    Raises:
        UserError: there are other data under a card that somebody has edited.
        CorruptShard: a file of the version is not what was merged.
    """
    place = f"{store.location}/dataset"
    earlier = {key for key in store.list("dataset") if _PUBLISHED.fullmatch(key.removeprefix("dataset/"))}
    data = {f"dataset/{name}": file.sha256 for name, file in version.files.items() if name != CARD}
    if is_edited((store.read(f"dataset/{CARD}") or b"").decode("utf-8", errors="replace")):
        if earlier == data.keys() and all(_sha256(store.read(key)) == sha256 for key, sha256 in data.items()):
            return place
        raise UserError(f"{place}: {EDITED}")
    for name in sorted(version.files, key=lambda name: name == CARD):
        store.put(f"dataset/{name}", read_file(store, version, name))
    for key in earlier - data.keys():
        store.delete(key)
    return place


def _sha256(data: bytes | None) -> str:
    return hashlib.sha256(data or b"").hexdigest()


def publish_configs(name: str, datasets: Mapping[str, Path], folder: str | Path, earlier: Sequence[Path] = ()) -> Path:
    """Puts several published datasets into one folder, each as a config of it, in the place of an earlier one.

    Args:
        name: of all of them together.
        datasets: folder of each config.
        earlier: folders of the datasets whose rows theirs go on from, of which the card tells.

    Raises:
        UserError: the folder holds something that is no dataset.
    """
    with _replacing(folder) as (fresh, target):
        for config, dataset in datasets.items():
            shutil.copytree(dataset / "data", fresh / "data" / config)
        cards = {config: (dataset / CARD).read_text(encoding="utf-8") for config, dataset in datasets.items()}
        before = [(dataset / CARD).read_text(encoding="utf-8") for dataset in earlier]
        (fresh / CARD).write_text(render_configs(name, cards, before), encoding="utf-8")
    return target


@contextlib.contextmanager
def _replacing(folder: str | Path) -> Iterator[tuple[Path, Path]]:
    """A fresh folder and the one whose place it takes once it is filled; nothing changes where filling it fails.

    A target with the same data and a card that somebody has edited stays.

    Raises:
        UserError: the target holds something that is no dataset, or other data under a card that somebody has edited.
    """
    target = resolved(folder)
    fresh = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        check_target(folder)
        yield fresh, target
        for path in (fresh, *fresh.rglob("*")):
            _flush(path)
        check_target(folder)  # once more: what has been put there since would go with what was there
        if is_edited(_card_in(target)):
            if _same_files(fresh / "data", target / "data"):
                return
            raise UserError(f"{folder}: {EDITED}")
        _swap(fresh, target)
        _flush(target.parent)
    except OSError as error:
        raise StoreError(f"cannot publish to {target}: {error.strerror or error}", busy=is_passing(error)) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    names = [{path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (one, other)]
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


def leftovers(folder: str | Path) -> Iterator[Path]:
    """What publishers of a folder that were killed left beside it; a day old, so that none of them is at work."""
    target = resolved(folder)
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}(\.old)?")
    since = time.time() - _DAY
    beside = target.parent.iterdir() if target.parent.is_dir() else ()
    for path in sorted(path for path in beside if ours.fullmatch(path.name)):
        with contextlib.suppress(FileNotFoundError):  # somebody was at work
            if path.lstat().st_ctime < since:
                yield path


def _flush(path: Path) -> None:
    """As the store does, but where a file system knows no such thing a dataset is published all the same."""
    try:
        flush(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


@contextlib.contextmanager
def unwritable_is_told(name: str) -> Iterator[None]:
    """Tells of a place that the operating system does not let us write in.

    Args:
        name: of the place, for messages.

    Raises:
        UserError: with the reason.
        StoreError: it does not let us just now.
    """
    try:
        yield
    except OSError as error:
        problem = f"{name} cannot be written: {error.strerror or error}"
        raise (StoreError(problem, busy=True) if is_passing(error) else UserError(problem)) from error


def check_writable(folder: Path) -> None:
    """Raises `OSError` where nothing can be written in a folder, or in the nearest above it; leaves no trace."""
    # Nothing is made and removed again under a name that another driver of this run may be using.
    there = next(path for path in (folder, *folder.parents) if path.exists())
    with tempfile.TemporaryFile(dir=there):
        pass


def check_target(folder: str | Path) -> Path:
    """The folder that a dataset may be put into.

    Raises:
        UserError: it holds something that is no dataset, or `load_dataset` would not find it.
    """
    if _SCHEME.match(str(folder)):
        raise UserError(
            f"{folder}: not a folder, nor a dataset of the Hub (hf://ORG/NAME); a bucket has tools of its own"
        )
    target = resolved(folder)
    if found := _UNLOADABLE.search(str(target)):
        raise UserError(f"{target}: load_dataset opens no folder with {found[0]!r} in its path; choose another one")
    if strange := _strange(target):
        raise UserError(f"{folder}: exists and is not a published dataset ({strange}); it was left as it is")
    return target


def _strange(target: Path) -> str:
    """What says that there is something else than a dataset; "" where there is one, an empty folder, or nothing.

    Looks again where another publisher swapped the folder meanwhile, and may be emptying the old one.
    """
    while True:
        try:
            handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return ""
        except NotADirectoryError:
            return "it is a file"
        try:
            strange = _strange_in(Path(f"/proc/self/fd/{handle}"))  # the folder that was opened, wherever it is now
            if os.path.samestat(os.fstat(handle), os.stat(target)):  # noqa: PTH116
                return strange
        except FileNotFoundError:
            pass  # it is being emptied
        finally:
            os.close(handle)


def _strange_in(folder: Path) -> str:
    """As `_strange`: publishing takes away all that is there, so it has to be what was published, and nothing more."""
    names = {path.name for path in folder.iterdir()} - _LITTER
    if not names:
        return ""
    if others := sorted(names - {CARD, "data"}):
        return f"{others[0]!r} is in it"
    if not (folder / "data").is_dir():
        return "it has no folder 'data'"
    for path in (folder / "data").rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and not _PUBLISHED.fullmatch(name):
            return f"{name!r} is in it"
    if CARD not in names:
        return f"it has no {CARD}"
    return "" if is_card(_card_in(folder)) else f"its {CARD} is not batchgen's"


def _card_in(folder: Path) -> str:
    """A folder's card; "" where there is none."""
    try:
        return (folder / CARD).read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _swap(fresh: Path, target: Path) -> None:
    """Puts a folder in the place of another, whoever else does so at the same time; the last one stays."""
    placed = False
    while not placed:
        old = target.parent / f".{target.name}.{uuid.uuid4().hex}.old"
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, old)  # noqa: PTH105  # a folder, in one step
            reach("earlier dataset aside")
        try:
            os.replace(fresh, target)  # noqa: PTH105
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with contextlib.suppress(OSError):
                    os.replace(old, target)  # noqa: PTH105
                raise
        else:
            placed = True
            reach("dataset published")
        shutil.rmtree(old, ignore_errors=True)
