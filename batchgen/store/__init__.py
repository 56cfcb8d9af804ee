"""Stores: where a run's files live. One contract, `ObjectStore`; a backend a module."""

from pathlib import Path

from batchgen.paths import expanded
from batchgen.store.base import ObjectStore, probe
from batchgen.store.local import LocalStore

__all__ = ["LocalStore", "ObjectStore", "is_remote", "log_folder", "open_store", "probe"]


def is_remote(location: str) -> bool:
    """Whether a location is no folder."""
    return location.startswith("s3://")


def log_folder(location: str) -> Path:
    """Where the logs of a run go: into its folder, or, where that is a bucket, into one of this machine."""
    if not is_remote(location):
        return expanded(location) / "logs"
    return Path("runs") / location.removeprefix("s3://").strip("/").replace("/", "-") / "logs"


def open_store(location: str) -> ObjectStore:
    """The store at a location: `s3://bucket/prefix`, or a folder of a file system that all machines share.

    Raises:
        UserError: the location names no store.
    """
    if is_remote(location):
        from batchgen.store.s3 import S3Store

        return S3Store(location)
    return LocalStore(location)
