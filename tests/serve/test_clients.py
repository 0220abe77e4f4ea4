"""Clients that vanish, send half a request or do not read: nobody waits, and nothing is left."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from serving import Live, alone, live, small, wait

import makemoe
from benchmarks.measure import resident_mb
from makemoe.serve import server as serving
from makemoe.serve.limits import Limits
from makemoe.serve.text import Wish

LONG = 20_000
LIMITS = Limits(max_tokens=LONG)


@pytest.fixture(scope="module")
def model() -> makemoe.Model:
    return small()


@contextmanager
def connected(server: Live, buffer: int | None = None) -> Iterator[socket.socket]:
    """A connection, by hand; in its buffer, the system keeps about so many bytes."""
    with socket.socket() as client:
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(20)
        client.connect(("127.0.0.1", server.port))
        yield client


def request(stream: bool = True, **fields: object) -> bytes:
    """The bytes of a request."""
    body = json.dumps({"prompt": "a", "max_tokens": LONG, "stream": stream, **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def reset(client: socket.socket) -> None:
    """Hang up without a word, as a machine that loses its power."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def is_served(server: Live, model: makemoe.Model) -> None:
    """Assert that another client gets its text, and soon."""
    begin = time.monotonic()
    got = server.post(prompt="abc", max_tokens=20, seed=4).json["choices"][0]["text"]
    assert got == alone(model, Wish("abc", 20, seed=4))
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("politely", [True, False])
def test_clients_that_vanish_leave_nothing(
    model: makemoe.Model, stream: bool, politely: bool
) -> None:
    with live(model, LIMITS) as server:
        for _ in range(20):
            with connected(server) as client:
                client.sendall(request(stream))
                if stream:
                    assert client.recv(100).startswith(b"HTTP/1.1 200")
                else:
                    wait(lambda: len(server.engine.running) > 0)
                if not politely:
                    reset(client)
        is_served(server, model)
        server.wait_idle()
        assert server.engine.drawn < 20 * LONG / 2


def test_clients_that_vanish_while_they_wait_leave_nothing(model: makemoe.Model) -> None:
    with live(model, Limits(rows=1, waiting=50, max_tokens=LONG)) as server:
        with connected(server) as first:
            first.sendall(request())
            wait(lambda: len(server.engine.running) == 1)
            others = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
            for other in others:
                other.sendall(request())
            wait(lambda: len(server.engine.waiting) == 20)
            for other in others:
                reset(other)
        is_served(server, model)
        server.wait_idle()


HALVES = {
    "nothing": b"",
    "half a line": b"POST /v1/comp",
    "half a head": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le",
    "half a body": request()[:-9],
    "half a chunk": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nff\r\n{",
}


@pytest.mark.parametrize("what", HALVES)
def test_half_a_request_holds_nobody_up_and_is_cut(
    model: makemoe.Model, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(serving, "WATCH_S", 0.02)
    monkeypatch.setattr(serving, "REQUEST_S", 0.5)
    with live(model, LIMITS) as server:
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        for client in clients:
            client.sendall(HALVES[what])
        is_served(server, model)
        wait(lambda: not server.server.server_state.connections)
        for client in clients:
            assert client.recv(1) == b""
            client.close()
        server.wait_idle()


def test_a_request_that_drips_in_is_cut_as_well(
    model: makemoe.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "WATCH_S", 0.02)
    monkeypatch.setattr(serving, "REQUEST_S", 0.3)
    with live(model, LIMITS) as server, connected(server) as client, suppress(OSError):
        for _ in range(250):
            client.sendall(b"G")
            time.sleep(0.02)
        raise AssertionError("it was not cut within 5 seconds")


def test_a_client_that_does_not_read_holds_nobody_up_and_is_cut(
    model: makemoe.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "WATCH_S", 0.05)
    monkeypatch.setattr(serving, "READ_S", 1.0)
    with live(model, LIMITS, buffer=4096) as server, connected(server, 4096) as client:
        client.sendall(request(experts=True))
        # Far more than the buffers of the system hold.
        wait(lambda: any(c.flow.write_paused for c in server.server.server_state.connections))
        is_served(server, model)
        server.wait_idle()


def test_a_client_that_reads_slowly_gets_all_of_its_text(
    model: makemoe.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "WATCH_S", 0.05)
    monkeypatch.setattr(serving, "READ_S", 1.0)
    count = 600
    with live(model, LIMITS, buffer=4096) as server, connected(server, 4096) as client:
        client.sendall(request(experts=True, max_tokens=count, seed=1))
        body = b""
        while not body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            body += client.recv(8192)
            time.sleep(0.002)
        lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
        text = "".join(json.loads(line)["choices"][0]["text"] for line in lines)
        assert text == alone(model, Wish("a", count, seed=1))


def test_a_body_of_100_mb_is_not_read(model: makemoe.Model) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with live(model, LIMITS) as server, connected(server) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        try:
            while sent < 100 << 20:
                client.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
        assert sent < 30 << 20  # what was read, and what the system's buffers hold
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
        server.wait_idle()


def test_connections_are_limited(model: makemoe.Model) -> None:
    with live(model, Limits(rows=1, waiting=1)) as server:
        most = server.server.config.limit_concurrency
        assert most == 2 + serving.SPARE
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(most)]
        wait(lambda: len(server.server.server_state.connections) == most)
        assert server.ask("GET", "/health").status == 503
        for client in idle:
            client.close()
        wait(lambda: not server.server.server_state.connections)
        is_served(server, model)


def test_many_requests_leave_no_memory(model: makemoe.Model) -> None:
    """10,000 requests are part of `make bench ROW=serving`."""
    with live(model) as server:
        for _ in range(50):
            server.post(prompt="a", max_tokens=2)
        before_mb = resident_mb("VmRSS")  # now, not the peak, which an earlier test may have set
        if before_mb is None:
            pytest.skip("this system does not tell")
        for _ in range(150):
            server.post(prompt="abc", max_tokens=5, experts=True)
        server.wait_idle()
        after_mb = resident_mb("VmRSS")
        assert after_mb is not None
        assert after_mb - before_mb < 8


def test_a_connection_serves_several_requests(
    model: makemoe.Model,
) -> None:
    with live(model) as server, connected(server) as client:
        for _ in range(3):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += client.recv(2000)
            assert answer.startswith(b"HTTP/1.1 200")
        assert len(server.server.server_state.connections) == 1
