import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from served import BODY, SHA256, Handler, Server, refusal, unprivileged

from makemoe.data import corpus
from makemoe.data.corpus import TINY_SHAKESPEARE, RemoteText, cache_folder, fetch, load_text
from makemoe.errors import DataError


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


def refused_fetch(remote: RemoteText, cache: Path) -> str:
    """The line that a fetch ends in; it names the way out and leaves nothing behind."""
    message = refusal(fetch, remote, cache)
    assert "--data.corpus FILE" in message
    assert remote.url in message
    assert leftovers(cache, remote) == []
    return message


def leftovers(cache: Path, remote: RemoteText) -> list[str]:
    return sorted({path.name for path in cache.iterdir()} - {f"{remote.filename}.lock"})


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
