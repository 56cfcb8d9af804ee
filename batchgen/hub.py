"""Publishes a dataset version to the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchgen.card import is_card, is_edited
from batchgen.engines.repository import is_hub_name
from batchgen.errors import BatchgenError, StoreError, UserError
from batchgen.merge.version import CARD, Version, copy_file
from batchgen.paths import scratch_folder
from batchgen.publish import EDITED, is_published
from batchgen.store.base import ObjectStore

_SCHEME = "hf://"
_KIND = "dataset"


def hub_name(target: str) -> str | None:
    """The name of a dataset on the Hub, of `hf://ORG/NAME` or `hf://datasets/ORG/NAME`; None of a folder.

    Raises:
        UserError: it is no such name.
    """
    if not target.startswith(_SCHEME):
        return None
    name = target.removeprefix(_SCHEME).removeprefix("datasets/").rstrip("/")
    if "/" not in name or not is_hub_name(name):
        raise UserError(f"--to: {target!r}: no name of a dataset on the Hub, which is hf://ORG/NAME")
    return name


def publish_hub(
    store: ObjectStore, version: Version, name: str, private: bool = False, token: str | None = None
) -> str:
    """Puts a version's files into a dataset of the Hub, as `upload` does.

    Returns:
        Its address.

    Raises:
        UserError, StoreError: see `upload`.
        CorruptShard: a file of the version is not what was merged.
    """
    with scratch_folder() as folder:
        for path in version.files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            copy_file(store, version, path, folder / path)
        return upload(folder, name, private, token, f"{version.kept:,} rows by batchgen")


def upload(
    folder: Path, name: str, private: bool = False, token: str | None = None, message: str = "Rows by batchgen"
) -> str:
    """Puts a published folder into a dataset of the Hub, in one commit, in the place of an earlier one.

    Files of others there stay. One that is there already, with a card that somebody has edited, is left as it is.

    Args:
        name: ORG/NAME, or NAME of one's own; it is created where it is not there.
        private: of one that is created; else as its owner has it by default.
        token: of an account; by default the environment's, or that of `hf auth login`.
        message: of the commit.

    Returns:
        Its address.

    Raises:
        UserError: it may not be written with this token, or has a card of somebody else's, or one that was edited and
            other data.
        StoreError: the Hub cannot be reached, or fails.
    """
    if not is_hub_name(name):
        raise UserError(f"{name!r}: no name of a dataset on the Hub, which is ORG/NAME")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    place = f"{_SCHEME}{name}"
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    data = {path: file for path, file in files.items() if is_published(path)}
    with _told(place):
        hub = HfApi(token=token, library_name="batchgen")
        made = hub.create_repo(name, repo_type=_KIND, private=private or None, exist_ok=True)
        about = hub.dataset_info(made.repo_id, files_metadata=True)
        there = {file.rfilename: file for file in about.siblings or ()}
        earlier = {path for path in there if is_published(path)}
        card = _card(hub, made.repo_id, about.sha) if CARD in there else ""
        if card.strip() and not is_card(card):
            raise UserError(f"{place}: its {CARD} is not batchgen's, and would be written over: move it away")
        if is_edited(card):
            if earlier == data.keys() and all(_same(there[path], file) for path, file in data.items()):
                return str(made)
            raise UserError(f"{place}: {EDITED}")
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, str(files[path])) for path in (*data, CARD)
        ]
        operations += [CommitOperationDelete(path) for path in sorted(earlier - data.keys())]
        hub.create_commit(made.repo_id, operations, commit_message=message, repo_type=_KIND, parent_commit=about.sha)
    return str(made)


def _card(hub: Any, name: str, commit: str | None) -> str:
    with scratch_folder() as cache:
        path = hub.hf_hub_download(name, CARD, repo_type=_KIND, revision=commit, cache_dir=cache)
        return Path(path).read_bytes().decode("utf-8", errors="replace")


def _same(there: Any, file: Path) -> bool:
    """Whether the Hub has the bytes of a file: it tells the SHA-256 of large ones, and Git's name of others."""
    data = file.read_bytes()
    if there.lfs is not None:
        return bool(there.lfs.sha256 == hashlib.sha256(data).hexdigest())
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


@contextlib.contextmanager
def _told(place: str) -> Iterator[None]:
    """Tells what the Hub's client raises, without what it says of a request."""
    from huggingface_hub import errors

    try:
        yield
    except BatchgenError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{place}: HF_HUB_OFFLINE is set, so that the Hub is not asked") from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{place}: there is no token; set HF_TOKEN, or use `hf auth login`") from error
    except errors.HFValidationError as error:
        raise UserError(f"{place}: {error}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            hint = "; set HF_TOKEN, or use `hf auth login`"
            raise UserError(f"{place}: the Hub does not let this token write there{hint}") from error
        if status in (409, 412):
            raise StoreError(f"{place}: somebody has committed to it in this moment; try again") from error
        raise StoreError(f"{place}: the Hub answers {status}") from error
    except Exception as error:  # no network, a full disk, a proxy, an answer that the client does not know
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise StoreError(f"{place}: the upload failed: {reason}") from error
