"""A store in a folder: local, NFS or Lustre.

An object appears whole or not at all: it is written under a name that is its writer's alone, flushed to the disk and
then linked to its key. `link` fails where the key exists, on every file system that batchgen runs on; renaming would
replace it.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from batchgen.errors import StoreError, is_passing
from batchgen.paths import resolved

# What `link` says where there are none, as on FAT and in most buckets that are mounted like a folder.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
_WITHOUT_LINKS = "its file system has no hard links, by which one attempt alone commits a shard; take another folder"


class LocalStore:
    """An `ObjectStore` in a folder, which is made when something is first written.

    Raises:
        UserError: the folder's name leads nowhere.
    """

    def __init__(self, folder: str | Path) -> None:
        self.root = resolved(folder)

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.root)

    def path(self, key: str) -> Path:
        """The file behind a key; raises ValueError for a key that leaves the store."""
        pure = PurePosixPath(key)
        if pure.is_absolute() or not pure.parts or any(part in ("..", ".") or "\0" in part for part in key.split("/")):
            raise ValueError(f"not a key of a store: {key!r}")
        return self.root.joinpath(*pure.parts)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Creates an object, durably; False where one of that key exists."""
        target = self.path(key)
        with _translated(f"cannot write {target}"), _written(target, data) as own:
            try:
                os.link(own, target)
            except FileExistsError:
                # NFS asks again where an answer was lost, and then meets its own link.
                return _is_same(own, target)
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise OSError(error.errno, _WITHOUT_LINKS) from error
                raise
        return True

    def put(self, key: str, data: bytes) -> None:
        """Creates or replaces an object, all at once."""
        target = self.path(key)
        with _translated(f"cannot write {target}"), _written(target, data) as own:
            own.replace(target)

    def read(self, key: str) -> bytes | None:
        """An object's bytes, or None where there is none."""
        target = self.path(key)
        with _translated(f"cannot read {target}"):
            try:
                return target.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_many(self, keys: Sequence[str]) -> Iterator[bytes | None]:
        """What `read` gives for each key, in order."""
        return map(self.read, keys)

    def upload(self, key: str, path: Path) -> None:
        """Moves a finished local file to a key that is the caller's alone, durably."""
        target = self.path(key)
        with _translated(f"cannot write {target}"):
            _make_folder(target.parent)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            try:
                path.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy(path, target)
            flush(target.parent)

    def open(self, key: str) -> BinaryIO:
        """An object for reading; raises FileNotFoundError where there is none."""
        target = self.path(key)
        try:
            return target.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(target) from None
        except OSError as error:
            raise _failure(f"cannot read {target}", error) from error

    def size(self, key: str) -> int:
        """An object's length in bytes; 0 where there is none."""
        target = self.path(key)
        with _translated(f"cannot read {target}"):
            try:
                return target.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return 0

    def list(self, prefix: str) -> Iterator[str]:
        """Keys under a folder, in order; all of them where it has no name."""
        return (key for key in self._files(prefix) if not _is_unfinished(key))

    def unfinished(self, prefix: str) -> Iterator[str]:
        """Keys under a folder of files that do not have their names yet."""
        return (key for key in self._files(prefix) if _is_unfinished(key))

    def _files(self, prefix: str) -> Iterator[str]:
        name = prefix.rstrip("/")
        folder = self.path(name) if name else self.root
        with _translated(f"cannot list {folder}"):
            found = sorted(_walked(folder, f"{name}/" if name else ""))
        yield from found

    def delete(self, key: str) -> None:
        """Removes an object; nothing happens where there is none."""
        with _translated(f"cannot delete {key}"):
            self.path(key).unlink(missing_ok=True)

    @staticmethod
    def _copy(path: Path, target: Path) -> None:
        own = target.parent / f".{target.name}.{uuid.uuid4().hex}"
        try:
            shutil.copyfile(path, own)
            with own.open("rb") as file:
                os.fsync(file.fileno())
            own.replace(target)
        finally:
            own.unlink(missing_ok=True)  # half of it, where the disk is full
        path.unlink()


@contextmanager
def _written(target: Path, data: bytes) -> Iterator[Path]:
    """A file beside the target, flushed to the disk, to be given the target's name; so is the folder at the end."""
    _make_folder(target.parent)
    own = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        # Not exclusively: where a file server's answer is lost it is asked again, and the file is there.
        with own.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield own
    finally:
        own.unlink(missing_ok=True)
    flush(target.parent)


def _is_same(own: Path, target: Path) -> bool:
    try:
        return own.samefile(target)
    except FileNotFoundError:  # whoever had the key has been deleted
        return False


def _walked(folder: Path, prefix: str) -> Iterator[str]:
    """Files under a folder, their names after a prefix.

    `Path.rglob` leaves out what cannot be read now, as if there were nothing: as shards that are not committed.
    """
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walked(folder / entry.name, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield prefix + entry.name


def _is_unfinished(key: str) -> bool:
    return key.rpartition("/")[2].startswith(".")


def _make_folder(folder: Path) -> None:
    """Makes a folder where there is none, and flushes its name too: without it what is in there would be lost."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        with suppress(PermissionError):  # a folder that may be written in and not be read
            flush(folder.parent)


def flush(path: Path) -> None:
    """Has a file's content, or the names in a folder, on the disk before what comes next."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failure(what, error) from error


def _failure(what: str, error: OSError) -> StoreError:
    denied = isinstance(error, PermissionError)
    return StoreError(f"{what}: {error.strerror or error}", denied, busy=is_passing(error))
