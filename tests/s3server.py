"""A small S3 server: real HTTP, atomic `If-None-Match`, and faults on demand.

It keeps objects in memory and knows just what a client of batchgen asks for: PUT, GET, HEAD, DELETE, ListObjectsV2 and
multipart uploads. Signatures are not checked.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

# What to do with a request: nothing special, an error status, or one of the words below.
Fault = int | str | None
LOSE_ANSWER = "do it, then hang up"
TEAR_ANSWER = "do it, then hang up in the midst of the answer"
SLOW = "wait a moment"


class S3Server:
    """A server with one bucket's worth of objects, by whatever bucket name.

    Args:
        exclusive: whether a conditional PUT excludes; a store without it has to be refused.
    """

    def __init__(self, exclusive: bool = True) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.aborted = 0
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], Fault] = lambda method, key: None
        self.exclusive = exclusive
        self.lock = threading.Lock()
        self.http = _Http(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        """Stops serving."""
        self.http.shutdown()
        self.http.server_close()

    def put(self, key: str, data: bytes, only_if_absent: bool) -> bool:
        """Stores an object; False where it may not replace one."""
        with self.lock:
            if only_if_absent and self.exclusive and key in self.objects:
                return False
            self.objects[key] = data
            return True


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that were killed, or that read no answer, are what the tests are about."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def s3_server(exclusive: bool = True) -> Iterator[S3Server]:
    """A server for a while."""
    server = S3Server(exclusive)
    try:
        yield server
    finally:
        server.close()


def environment(server: S3Server) -> dict[str, str]:
    """What a process has to have in its environment to use the server."""
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test-secret-canary",
        "AWS_REGION": "us-east-1",
    }


def _handler(server: S3Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body in one segment: apart, each answer waits 40 ms for an acknowledgement.
        wbufsize = -1

        def log_message(self, *_: Any) -> None: ...

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            if self.lose:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if self.tear else body)
            self.close_connection = self.close_connection or self.tear

        def error(self, status: int, code: str) -> None:
            self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

        def serve(self) -> None:
            parts = urlsplit(self.path)
            self.key = unquote(parts.path).lstrip("/")
            self.query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            self.data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.lose = self.tear = False
            server.requests.append((self.command, self.key))
            fault = server.fault(self.command, self.key)
            if isinstance(fault, int):
                # As S3 says of a body that came too slowly; every other 400 is the client's own fault.
                self.error(fault, "RequestTimeout" if fault == 400 else "InjectedFault")
                return
            if fault == SLOW:
                time.sleep(0.3)
            self.lose, self.tear = fault == LOSE_ANSWER, fault == TEAR_ANSWER
            getattr(self, f"serve_{self.command.lower()}")()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = serve

        def serve_put(self) -> None:
            if "uploadId" in self.query:
                with server.lock:
                    server.uploads[self.query["uploadId"]][int(self.query["partNumber"])] = self.data
                self.answer(200, ETag=f'"{hashlib.md5(self.data).hexdigest()}"')
            elif server.put(self.key, self.data, self.headers.get("If-None-Match") == "*"):
                self.answer(200, ETag=f'"{hashlib.md5(self.data).hexdigest()}"')
            else:
                self.error(412, "PreconditionFailed")

        def serve_post(self) -> None:
            if "uploads" in self.query:
                number = uuid.uuid4().hex
                server.uploads[number] = {}
                name = escape(self.key)
                self.answer(
                    200,
                    f"<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>{name}</Key>"
                    f"<UploadId>{number}</UploadId></InitiateMultipartUploadResult>".encode(),
                )
            elif "delete" in self.query:
                from xml.etree import ElementTree

                bucket = self.key.split("/")[0]
                keys = [
                    element.text for element in ElementTree.fromstring(self.data).iter() if element.tag.endswith("Key")
                ]
                with server.lock:
                    for key in keys:
                        server.objects.pop(f"{bucket}/{key}", None)
                deleted = "".join(f"<Deleted><Key>{escape(str(key))}</Key></Deleted>" for key in keys)
                self.answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
            else:
                with server.lock:
                    parts = server.uploads.pop(self.query["uploadId"])
                    server.objects[self.key] = b"".join(parts[number] for number in sorted(parts))
                self.answer(
                    200,
                    b'<CompleteMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><ETag>"x"</ETag>'
                    b"</CompleteMultipartUploadResult>",
                )

        def serve_delete(self) -> None:
            with server.lock:
                if "uploadId" in self.query:
                    server.uploads.pop(self.query["uploadId"], None)
                    server.aborted += 1
                else:
                    server.objects.pop(self.key, None)
            self.answer(204)

        def serve_head(self) -> None:
            self.serve_get()

        def serve_get(self) -> None:
            if "list-type" in self.query:
                self.serve_list()
                return
            data = server.objects.get(self.key)
            if data is None:
                self.error(404, "NoSuchKey")
                return
            etag = f'"{hashlib.md5(data).hexdigest()}"'
            dated = {"ETag": etag, "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if part is None:
                self.answer(200, data, **dated)
            else:
                first, last = int(part[1]), min(int(part[2]), len(data) - 1)
                self.answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **dated)

        def serve_list(self) -> None:
            bucket, prefix = self.key.rstrip("/"), self.query.get("prefix", "")
            after = self.query.get("continuation-token", "")
            objects = dict(server.objects)  # others write meanwhile
            names = sorted(key[len(bucket) + 1 :] for key in objects if key.startswith(f"{bucket}/"))
            names = [name for name in names if name.startswith(prefix) and name > after]
            page, rest = names[:100], names[100:]
            contents = "".join(
                f"<Contents><Key>{escape(name)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
                f'<ETag>"x"</ETag><Size>{len(objects[f"{bucket}/{name}"])}</Size></Contents>'
                for name in page
            )
            more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if rest else ""
            self.answer(
                200,
                f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
                f"<IsTruncated>{'true' if rest else 'false'}</IsTruncated>{more}{contents}</ListBucketResult>".encode(),
            )

    return Handler
