"""A small Hugging Face Hub: models and datasets over real HTTP, with commits, gated repositories and uploads.

It knows just what the Hub's own client asks for when a model or dataset is looked up, downloaded or uploaded. Files are
kept in memory; there is no LFS and no Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]
_PIECE = 1 << 16


@dataclass
class Repository:
    """All commits of a repository, the newest last."""

    commits: dict[str, Files] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: Files) -> str:
        """Makes the files the content of `main`; returns the commit's name."""
        content = b"".join(path.encode() + files[path] for path in sorted(files))
        name = hashlib.sha1(b"%d" % len(self.commits) + content).hexdigest()
        self.commits[name] = dict(files)
        return name

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch (there is one, `main`) or a commit's own name."""
        if revision == "main":
            return list(self.commits)[-1]
        return revision if revision in self.commits else None


class HubServer:
    """A Hub on loopback. `requests` has "METHOD path" of every request, in order.

    `created` has what was asked for with each repository, `large` the SHA-256 of files that it says are large ones, and
    `refuses` is the status of every commit.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.large: dict[str, str] = {}
        self.refuses: int | None = None
        self.token: str | None = None
        # Called before each piece of a file's content; one that sleeps makes a slow Hub.
        self.pace: Callable[[], None] = lambda: None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        """Stops serving."""
        self.http.shutdown()
        self.http.server_close()

    def add(self, kind: str, name: str, files: Files | Path, gated: bool = False) -> str:
        """Commits files, or what a folder holds, to a repository of a kind ("models", "datasets")."""
        if isinstance(files, Path):
            files = {
                str(path.relative_to(files)): path.read_bytes() for path in sorted(files.rglob("*")) if path.is_file()
            }
        repository = self.repositories.setdefault(f"{kind}/{name}", Repository(gated=gated))
        return repository.commit(files)


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A Hub for a while."""
    server = HubServer()
    try:
        yield server
    finally:
        server.close()


def environment(server: HubServer, home: Path) -> dict[str, str]:
    """What a process has to have in its environment to use the server, with a cache of its own."""
    return {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


_API = re.compile(
    r"/api/(models|datasets)/([\w.-]+/[\w.-]+?)(?:/(revision|tree|paths-info|preupload|commit)/([^/]+)(/.*)?)?"
)
_FILE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            for start in range(0, 0 if self.command == "HEAD" else len(body), _PIECE):
                server.pace()
                self.wfile.write(body[start : start + _PIECE])

        def _json(self, tree: Any, status: int = 200) -> None:
            self._answer(status, json.dumps(tree).encode(), Content_Type="application/json")

        def _refuse(self, status: int, code: str) -> None:
            self._answer(status, json.dumps({"error": code}).encode(), X_Error_Code=code, X_Error_Message=code)

        def _read(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _commit(self, key: str, revision: str, file: bool = False) -> tuple[str, Files] | None:
            """A commit and its files; None where the request has been refused."""
            repository = server.repositories.get(key)
            if repository is None:
                self._refuse(401, "RepoNotFound")
            # Anybody may look at a gated repository; its files are what is gated.
            elif file and repository.gated and self.headers.get("Authorization") != f"Bearer {server.token}":
                self._refuse(403, "GatedRepo")
            elif (name := repository.resolve(revision)) is None:
                self._refuse(404, "RevisionNotFound")
            else:
                return name, repository.commits[name]
            return None

        def _serve(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            server.requests.append(f"{self.command} {path}")
            body = self._read()
            if path == "/api/repos/create":
                given = json.loads(body)
                server.created.append(given)
                key = f"{given['type']}s/{given['organization']}/{given['name']}"
                there = key in server.repositories
                if not there:
                    server.repositories[key] = Repository()
                    server.repositories[key].commit({})
                self._json({"url": f"{server.url}/{key}"}, 409 if there else 200)
            elif path == "/api/validate-yaml":
                self._json({"warnings": [], "errors": []})
            elif found := _FILE.fullmatch(path):
                self._file(*found.groups())
            elif found := _API.fullmatch(path):
                kind, name, what, revision, rest = found.groups()
                self._api(kind, name, what, revision or "main", (rest or "").strip("/"), body, parse_qs(url.query))
            else:
                self._answer(404)

        def _file(self, datasets: str | None, name: str, revision: str, path: str) -> None:
            if (found := self._commit(f"{'datasets' if datasets else 'models'}/{name}", revision, file=True)) is None:
                return
            commit, files = found
            if path not in files:
                self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                return
            data = files[path]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted and self.command == "GET":
                start, stop = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
                headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                self._answer(206, data[start:stop], **headers)
            else:
                self._answer(200, data, **headers)

        def _api(
            self, kind: str, name: str, what: str | None, revision: str, rest: str, body: bytes, query: dict[str, Any]
        ) -> None:
            if (found := self._commit(f"{kind}/{name}", revision)) is None:
                return
            commit, files = found
            if what in (None, "revision"):
                siblings = [{"rfilename": path} for path in files]
                if "true" in str(query.get("blobs", "")).lower():
                    for each, (path, data) in zip(siblings, files.items(), strict=True):
                        each |= {"size": len(data), "blobId": _git_name(data), **_large(server.large.get(path))}
                self._json({"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})
            elif what == "tree":
                self._json(_tree(files, rest, "true" in str(query.get("recursive", "")).lower()))
            elif what == "paths-info":
                wanted = parse_qs(body.decode()).get("paths", []) if body[:1] != b"{" else json.loads(body)["paths"]
                self._json([_entry(path, files[path]) for path in wanted if path in files])
            elif what == "preupload":
                self._json(
                    {
                        "files": [
                            {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                            for each in json.loads(body)["files"]
                        ]
                    }
                )
            elif server.refuses is not None:
                self._answer(server.refuses)
            else:
                after = dict(files)
                for line in body.splitlines():
                    change = json.loads(line)
                    value = change["value"]
                    if change["key"] == "file":
                        after[value["path"]] = base64.b64decode(value["content"])
                    elif change["key"] == "deletedFile":
                        del after[value["path"]]
                oid = server.repositories[f"{kind}/{name}"].commit(after)
                self._json({"success": True, "commitOid": oid, "commitUrl": f"{server.url}/{kind}/{name}/commit/{oid}"})

        do_GET = do_HEAD = do_POST = _serve

    return Handler


def _large(sha256: str | None) -> dict[str, Any]:
    return {} if sha256 is None else {"lfs": {"sha256": sha256, "size": 1, "pointerSize": 1}}


def _git_name(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}


def _tree(files: Files, folder: str, recursive: bool) -> list[dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        if folder and not path.startswith(f"{folder}/"):
            continue
        rest = path[len(folder) :].strip("/")
        if "/" in rest and not recursive:
            name = f"{folder}/{rest.partition('/')[0]}".strip("/")
            entries[name] = {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        else:
            entries[path] = _entry(path, data)
    return list(entries.values())
