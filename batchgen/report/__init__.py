"""The page about a run: what came of its rows, and what its newest dataset version is like."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from batchgen.api import progress_of
from batchgen.commit import committed
from batchgen.errors import UserError
from batchgen.merge.version import CARD, latest_version, read_file
from batchgen.paths import expanded
from batchgen.rejected import examples_of
from batchgen.report.figures import look
from batchgen.report.page import MARK, render_report
from batchgen.savedjob import saved_tree
from batchgen.settle import read_plan
from batchgen.store.base import ObjectStore

__all__ = ["write_report"]

# Where it is in a run's folder.
_KEY = "report.html"


def write_report(store: ObjectStore, path: str | None = None) -> str:
    """Writes the page about a run, in the place of an earlier one.

    Args:
        path: a file; by default it is kept with the run.

    Returns:
        Where it is.

    Raises:
        UserError: there is no run, or the file is no report, or cannot be written.
        CorruptShard: a file of the dataset version cannot be read, or a shard that examples of rejected rows are in.
    """
    plan = read_plan(store)
    file = None if path is None else _free(path)
    manifests = committed(store, plan)
    version = latest_version(store)
    text = render_report(
        saved_tree(store),
        plan,
        len(manifests),
        progress_of(manifests),
        version,
        look(store, version) if version else None,
        read_file(store, version, CARD).decode("utf-8") if version else "",
        examples_of(store, plan, manifests),
    )
    page = text.encode("utf-8")
    if file is None:
        store.put(_KEY, page)
        return f"{store.location}/{_KEY}"
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        fresh.write_bytes(page)
        fresh.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise UserError(f"--to: {path!r} cannot be written: {error}") from error
    return str(file)


def _free(path: str) -> Path:
    """A file that may be written: one that is not there, or an earlier report.

    Raises:
        UserError: it is something else, or cannot be written.
    """
    file = expanded(path)
    try:
        if file.is_dir():
            raise UserError(f"--to: {path!r} is a folder; name a file, such as {str(file / _KEY)!r}")
        if file.exists() and MARK not in file.read_bytes()[:4096]:
            raise UserError(f"--to: {path!r} is there, and is no report of batchgen's; it was left as it is")
        if not os.access(file.parent, os.W_OK):
            raise UserError(f"--to: {path!r}: the folder {str(file.parent)!r} is not there, or cannot be written")
    except OSError as error:
        raise UserError(f"--to: {path!r} cannot be written: {error}") from error
    return file
