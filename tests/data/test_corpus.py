import hashlib
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from makemoe.data import corpus, reading
from makemoe.data.corpus import (
    TINY_SHAKESPEARE,
    RemoteText,
    cache_folder,
    fetch,
    load_text,
    read_chunks,
)
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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    # urllib keeps the proxies that its first request found in the environment.
    monkeypatch.setattr(urllib.request, "_opener", None)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stopped.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "makemoe"


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


def refused_fetch(remote: RemoteText, cache: Path) -> str:
    """The line that a fetch ends in; it names the way out and leaves nothing behind."""
    message = refusal(fetch, remote, cache)
    assert "--data.corpus FILE" in message
    assert remote.url in message
    assert leftovers(cache, remote) == []
    return message


def leftovers(cache: Path, remote: RemoteText) -> list[str]:
    return sorted({path.name for path in cache.iterdir()} - {f"{remote.filename}.lock"})


# --- files of the user's -----------------------------------------------------------------------


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    text = "é\r\n\U0001f600\rx\n\ufeff\0"
    file.write_bytes(text.encode())
    assert load_text(str(file)) == text


def test_only_a_leading_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "a\ufeffb".encode())
    assert load_text(str(file)) == "a\ufeffb"


@pytest.mark.parametrize("block_bytes", [3, 4, 5, 6, 7, 1 << 16])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\ufeff\ufeff"])
def test_blocks_may_end_within_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, mark: str
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", block_bytes)
    file = tmp_path / "mine.txt"
    text = "aé€\U0001f600" * 20
    file.write_bytes((mark + text).encode())
    chunks = list(read_chunks(str(file)))
    assert "".join(chunks) == mark[1:] + text
    assert all(chunks)
    assert max(len(chunk.encode()) for chunk in chunks) <= block_bytes + 3


def test_a_second_character_in_a_later_block_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 8)
    file = tmp_path / "mine.txt"
    file.write_text("a" * 100 + "b")
    assert load_text(str(file)) == "a" * 100 + "b"


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Put bytes where standard input is."""

    def pipe(content: bytes) -> None:
        corpus._standard_input.cache_clear()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    yield pipe
    corpus._standard_input.cache_clear()


def test_standard_input_is_the_same_text_each_time(
    piped: Callable[[bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_text("a file of that name")
    monkeypatch.setattr(reading, "BLOCK_BYTES", 3)
    piped("\ufeffGrüße, Bürger!\r\n".encode())
    for _ in range(3):
        assert load_text("-") == "Grüße, Bürger!\r\n"
    assert load_text("./-") == "a file of that name"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "is empty"), (b"aaa", "contains only"), (b"ab\xff", "offset 2"), (b"ab" * 50, "Larger")],
)
def test_standard_input_that_is_no_text_is_refused(
    piped: Callable[[bytes], None],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    problem: str,
) -> None:
    monkeypatch.setattr(corpus, "MOST_STANDARD_INPUT", 99)
    piped(content)
    assert problem in refusal(load_text, "-")


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "RANK"])
def test_standard_input_is_not_shared_by_processes(
    piped: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    piped(b"abc")
    monkeypatch.setenv(variable, "0")
    assert "several processes" in refusal(load_text, "-")


def test_no_standard_input_is_told(
    piped: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(b"")
    monkeypatch.setattr(sys, "stdin", None)
    assert "closed" in refusal(load_text, "-")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "pipe", "loop"])
def test_only_a_regular_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    assert f"{path!r}: cannot be read (" in refusal(load_text, path)


def test_reading_for_long_shows_a_bar_on_a_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BAR_DELAY_S", 0.02)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 10)
    file = tmp_path / "mine.txt"
    file.write_text("ab" * 50)
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        for _ in read_chunks(str(file)):
            time.sleep(0.02)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("reading mine.txt" in err) == terminal
    monkeypatch.setattr(reading, "BAR_DELAY_S", 60.0)
    load_text(str(file))
    assert capsys.readouterr() == ("", "")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("ab")
    assert load_text("~/mine.txt") == "ab"


def test_the_sample_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").write_text("ab")
    file = Path(corpus.__file__).with_name("sample.txt")
    assert load_text("sample") == file.read_bytes().decode()
    assert load_text("./sample") == "ab"


def test_a_missing_file_names_the_mend(tmp_path: Path) -> None:
    path = str(tmp_path / "no.txt")
    assert refusal(load_text, path).startswith(
        f"--data.corpus {path!r}: no such file; check the path"
    )
    assert "no such file" in refusal(load_text, "")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("smaple", "sample"),
        ("Sample", "sample"),
        ("shakespeare", "tinyshakespeare"),
        ("tiny_shakespeare", "tinyshakespeare"),
    ],
)
def test_a_misspelt_name_is_told_the_right_one(name: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in refusal(load_text, name)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert f"{str(tmp_path)!r}: is a folder" in refusal(load_text, str(tmp_path))


def test_an_unreadable_file_is_refused() -> None:
    with unprivileged() as folder:
        assert "no permission" in refusal(load_text, str(folder / "secret.txt"))


@pytest.mark.parametrize("path", ["a\0b", "a" * 10_000, "/dev/null/a\nb"])
def test_an_impossible_path_is_refused_in_one_line(path: str) -> None:
    assert repr(path) in refusal(load_text, path)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    assert "empty" in refusal(load_text, str(file))


@pytest.mark.parametrize(
    ("content", "byte", "offset"),
    [
        (b"caf\xe9 au lait", "0xe9", 3),
        (b"\xef\xbb\xbfcaf\xe9", "0xe9", 6),  # counted in the file, byte order mark included
        ("ab".encode("utf-16"), "0xff", 0),
        (b"ab\xf0\x9f\x98", "0xf0", 2),  # cut off within a character
        (b"ab\xed\xa0\x80", "0xed", 2),  # a surrogate
        ("aé€\U0001f600".encode() + b"b\xe2\x82c", "0xe2", 11),
    ],
)
@pytest.mark.parametrize("block_bytes", [3, 4, 5, 7, 1 << 16])
def test_a_text_that_is_not_utf8_names_the_byte_and_its_offset(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    byte: str,
    offset: int,
    block_bytes: int,
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", block_bytes)
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    message = refusal(load_text, str(file))
    assert f"byte {byte} at offset {offset};" in message
    assert str(file) in message


def test_a_text_of_one_distinct_character_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\n" * 1000)
    assert r"contains only '\n'" in refusal(load_text, str(file))


# --- the cache folder --------------------------------------------------------------------------


def test_the_cache_follows_xdg_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "makemoe"
    for unset in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == Path("/home/me/.cache/makemoe")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/me/.cache/makemoe")


def test_without_a_home_folder_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without a home
    assert "XDG_CACHE_HOME" in refusal(cache_folder)


@pytest.mark.parametrize("beneath", ["", "makemoe"])
def test_a_cache_folder_that_cannot_be_made_names_the_mend(
    server: Server, tmp_path: Path, beneath: str
) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / beneath
    message = refusal(fetch, server.remote(), cache)
    assert str(cache) in message
    assert "XDG_CACHE_HOME" in message
    assert "--data.corpus FILE" in message
    assert server.requests == 0


def test_a_read_only_cache_is_refused_unless_it_holds_the_text(server: Server) -> None:
    with unprivileged() as cache:
        assert fetch(server.remote(), cache).read_bytes() == BODY
        for remote in (server.remote(filename="new.txt"), server.remote(sha256="0" * 64)):
            message = refusal(fetch, remote, cache)
            assert f"{str(cache)!r}: Permission denied; set XDG_CACHE_HOME" in message
    assert server.requests == 0


# --- fetching ----------------------------------------------------------------------------------


def test_a_text_is_fetched_once_and_then_needs_no_network(server: Server, cache: Path) -> None:
    remote = server.remote()
    path = fetch(remote, cache)
    assert path == cache / "text.txt"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    server.answer = lambda handler: handler.send_error(500)
    assert fetch(remote, cache) == path
    assert server.requests == 1
    assert leftovers(cache, remote) == ["text.txt"]


def test_tinyshakespeare_is_fetched_into_the_cache_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE", server.remote())
    assert load_text("tinyshakespeare") == BODY.decode()
    assert (tmp_path / "makemoe" / "text.txt").exists()


@pytest.mark.parametrize("content", [b"", BODY[:-1], BODY[:-1] + b"?"])
def test_a_corrupt_cached_file_is_fetched_again(
    server: Server, cache: Path, content: bytes
) -> None:
    cache.mkdir(parents=True)
    (cache / "text.txt").write_bytes(content)
    assert fetch(server.remote(), cache).read_bytes() == BODY
    assert server.requests == 1


def test_a_corrupt_cached_file_outlives_a_failed_fetch(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "text.txt").write_bytes(b"old")
    server.answer = lambda handler: handler.send_error(503)
    assert "HTTP 503" in refusal(fetch, server.remote(), cache)
    assert (cache / "text.txt").read_bytes() == b"old"
    assert leftovers(cache, server.remote()) == ["text.txt"]


@pytest.mark.parametrize("declared", [len(BODY), len(BODY) // 2])
def test_a_short_body_is_refused(server: Server, cache: Path, declared: int) -> None:
    half = len(BODY) // 2
    server.answer = lambda handler: handler.send(BODY[:half], declared)
    message = refused_fetch(server.remote(), cache)
    assert f"the connection broke after {half} of {len(BODY)} bytes" in message


def test_more_bytes_than_expected_are_refused(server: Server, cache: Path) -> None:
    server.answer = lambda handler: handler.send(BODY + b"!")
    assert f"more than {len(BODY)} bytes" in refused_fetch(server.remote(), cache)


def test_an_endless_body_is_cut_short(server: Server, cache: Path) -> None:
    hung_up = threading.Event()

    def pour(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        try:
            while not server.stopped.is_set():
                handler.wfile.write(BODY)
        except ConnectionError:
            hung_up.set()

    server.answer = pour
    assert "more than" in refused_fetch(server.remote(), cache)
    assert hung_up.wait(5)


def test_a_wrong_checksum_is_refused(server: Server, cache: Path) -> None:
    server.answer = lambda handler: handler.send(BODY[:-1] + b"?")
    assert "wrong checksum" in refused_fetch(server.remote(), cache)


@pytest.mark.parametrize("status", [404, 500])
def test_an_http_error_names_its_status(server: Server, cache: Path, status: int) -> None:
    server.answer = lambda handler: handler.send_error(status)
    assert f"HTTP {status}" in refused_fetch(server.remote(), cache)


@pytest.mark.parametrize("rubbish", [b"", b"\n\x1b[31mrubbish\n\n", b"HTTP/1.0 200\r\n\xff: \xff"])
def test_an_answer_that_is_not_http_is_refused(server: Server, cache: Path, rubbish: bytes) -> None:
    server.answer = lambda handler: handler.wfile.write(rubbish)
    assert refused_fetch(server.remote(), cache).isprintable()


def test_nobody_listening_is_told(cache: Path, server: Server) -> None:
    with socket.socket() as bound:  # keeps the port, accepts nothing
        bound.bind(("127.0.0.1", 0))
        remote = server.remote(url=f"http://127.0.0.1:{bound.getsockname()[1]}/")
        assert "Connection refused" in refused_fetch(remote, cache)


@pytest.mark.parametrize("proxy", ["http://.bad", "http://127.0.0.1:port", "nonsense://x"])
def test_a_proxy_that_cannot_be_is_told(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", proxy)
    refused_fetch(server.remote(), cache)
    assert server.requests == 0


def test_a_silent_server_is_left(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "SILENCE_S", 0.1)
    server.answer = lambda handler: server.stopped.wait(5)
    assert "timed out" in refused_fetch(server.remote(), cache)


@pytest.mark.parametrize(
    "prefix",
    [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nName: ", b"HTTP/1.0 2", b""],
    ids=["body", "header", "status", "rubbish"],
)
def test_a_dripping_server_is_left_at_the_deadline(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, prefix: bytes
) -> None:
    monkeypatch.setattr(corpus, "DEADLINE_S", 0.2)
    server.answer = lambda handler: handler.drip(prefix)
    start = time.monotonic()
    assert "not finished within 0.2 seconds" in refused_fetch(server.remote(), cache)
    assert 0.2 <= time.monotonic() - start < 30


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_behind(
    server: Server,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    fault: BaseException,
) -> None:
    def fail(*args: object) -> None:
        raise fault

    expected = DataError if isinstance(fault, OSError) else KeyboardInterrupt
    message = "No space left" if isinstance(fault, OSError) else None
    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(expected, match=message):
            fetch(server.remote(), cache)
    assert leftovers(cache, server.remote()) == []
    assert fetch(server.remote(), cache).read_bytes() == BODY  # the lock was given back


CHILD = """
import sys
from pathlib import Path
from makemoe.data.corpus import RemoteText, fetch
assert "torch" not in sys.modules
print("ready", flush=True)
url, size, sha256, filename, cache = sys.argv[1:]
print(fetch(RemoteText(url, int(size), sha256, filename), Path(cache)))
"""


def test_processes_that_start_at_once_fetch_once(server: Server, cache: Path) -> None:
    go = threading.Event()

    def wait(handler: Handler) -> None:
        go.wait(30)
        handler.send(BODY)

    server.answer = wait
    remote = server.remote()
    arguments = [remote.url, str(remote.size), remote.sha256, remote.filename, str(cache)]
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CHILD, *arguments],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    time.sleep(0.2)  # all of them are at the lock, or at the server if there were none
    go.set()
    for child in children:
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out, err) == (0, f"{cache / 'text.txt'}\n", "")
    assert server.requests == 1
    assert leftovers(cache, remote) == ["text.txt"]


def test_a_lock_that_stays_held_is_told(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "DEADLINE_S", 0.05)
    monkeypatch.setattr(corpus, "SILENCE_S", 0.05)
    cache.mkdir(parents=True)
    remote = server.remote()
    with FileLock(f"{cache / remote.filename}.lock"):
        assert "another process" in refused_fetch(remote, cache)
    assert server.requests == 0


def test_progress_goes_to_a_terminal_only(
    server: Server, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(server.remote(filename="quiet.txt"), cache)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(server.remote(filename="shown.txt"), cache)
    out, err = capsys.readouterr()
    assert out == ""
    assert "shown.txt" in err
    assert "100%" in err


def test_tinyshakespeare_is_the_text_of_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = os.environ.get("MAKEMOE_TINYSHAKESPEARE")
    if not file:
        pytest.skip("MAKEMOE_TINYSHAKESPEARE does not name the file")
    data = Path(file).read_bytes()
    assert len(data) == TINY_SHAKESPEARE.size
    cached = tmp_path / "makemoe" / TINY_SHAKESPEARE.filename
    cached.parent.mkdir()
    cached.write_bytes(data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = load_text("tinyshakespeare")
    assert hashlib.sha256(text.encode()).hexdigest() == TINY_SHAKESPEARE.sha256
    assert len(set(text)) == 65
