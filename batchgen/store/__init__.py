"""Stores: where a run's files live. One contract, `ObjectStore`; a backend a module."""

from batchgen.store.base import ObjectStore
from batchgen.store.local import LocalStore

__all__ = ["LocalStore", "ObjectStore", "open_store"]


def open_store(location: str) -> ObjectStore:
    """The store at a location: a folder of this machine, or of a file system that all machines share."""
    return LocalStore(location)
