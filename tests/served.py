"""A server of texts on this machine, and what goes wrong with texts."""

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from makemoe.data.corpus import RemoteText
from makemoe.errors import DataError

BODY = "First Citizen: Grüße!\r\n".encode() * 5000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """A server on loopback whose answer a test chooses; it counts its requests."""

    daemon_threads = True
    answer: Callable[["Handler"], object]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = lambda handler: handler.send(BODY)
        self.requests = 0
        self.stopped = threading.Event()

    def remote(self, **changes: Any) -> RemoteText:
        fields: dict[str, Any] = {
            "url": f"http://127.0.0.1:{self.server_address[1]}/input.txt",
            "size": len(BODY),
            "sha256": SHA256,
            "filename": "text.txt",
        }
        return RemoteText(**(fields | changes))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        with suppress(ConnectionError):  # the client may hang up
            self.server.answer(self)

    def send(self, body: bytes, declared: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if declared is None else declared))
        self.end_headers()
        self.wfile.write(body)

    def drip(self, prefix: bytes) -> None:
        self.wfile.write(prefix)
        while not self.server.stopped.wait(0.01):
            self.wfile.write(b"x")

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder one may not write in, for root as well: root becomes `nobody` in the block."""
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to all but its owner
        folder = Path(name)
        user = os.geteuid()
        other = user or 65534
        (folder / "secret.txt").write_text("ab")
        (folder / "secret.txt").chmod(0)
        (folder / "text.txt").write_bytes(BODY)
        folder.chmod(0o555)
        try:
            os.seteuid(other)
        except OSError:
            pytest.skip("root here may not become another user")
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def refusal(function: Callable[..., object], *arguments: object) -> str:
    """The one line of the DataError that a call ends in."""
    with pytest.raises(DataError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message
