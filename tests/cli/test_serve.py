"""`makemoe serve` as a user starts and ends it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from commandline import Ended, refused
from nursery import MAKEMOE, Forked

import makemoe as library
from makemoe.serve.server import is_local, listening, url_of

Call = Callable[..., Ended]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def started(folder: Path, *flags: str, **env: str) -> Iterator[tuple[Forked, int]]:
    """The command in a process, and its port."""
    command = [MAKEMOE, "serve", "--ckpt_path=tiny", "--port=0", *flags]
    process = Forked(
        command,
        folder,
        {**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # What runs us in the background may have it ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        line = ""
        while "serving at" not in line:
            line = process.stderr.readline()
            assert line.startswith("makemoe: "), line
        yield process, int(line.partition("127.0.0.1:")[2].split(";")[0].split(" ")[0])
    finally:
        process.kill()


@contextmanager
def answer(port: int, **fields: object) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for completions."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(fields))
        yield connection.getresponse()


def test_it_serves_the_text_of_predict_until_ctrl_c(trained: Path) -> None:
    model = library.load(trained / "checkpoints/tiny/last.ckpt")
    expected = model.sample("KING:", max_new_tokens=30, seed=7)
    with started(trained) as (process, port):
        fields = {"model": "tiny", "prompt": "KING:", "max_tokens": 30, "seed": 7, "echo": True}
        with answer(port, **fields) as reply:
            assert json.loads(reply.read())["choices"][0]["text"] == expected
        with answer(port, max_tokens=4096, stream=True) as reply:
            assert reply.read(1)
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            body = reply.read().decode()
        assert "the server is being stopped" in body
        assert "[DONE]" not in body
        assert process.wait(timeout=20) == 130
        assert time.monotonic() - sent < 5
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_while_clients_do_not_read(trained: Path, number: signal.Signals) -> None:
    with started(trained) as (process, port):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        body = json.dumps({"max_tokens": 4096, "experts": True, "stream": True})
        for client in clients:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
            client.sendall(f"{head}\r\n{body}".replace("Host: a", "Host: localhost").encode())
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(20) == (130 if number == signal.SIGINT else -signal.SIGTERM)
        for client in clients:
            client.close()


def test_the_token_may_stand_in_the_environment(trained: Path) -> None:
    with started(trained, MAKEMOE_TOKEN="of-the-environment") as (_, port), answer(port) as reply:
        assert reply.status == 401


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(makemoe: Call, taken: int) -> None:
    words = [f"--port {taken} is taken on 127.0.0.1", "use another, or 0 for a free one"]
    refused(makemoe, 2, words, "serve", "--ckpt_path=last", f"--port={taken}")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["--ckpt_path is missing: which model to serve?"]),
        (["--ckpt_path=a", "--prot=1"], ["unknown option --prot: did you mean --port?"]),
        (["--ckpt_path=a", "--port=65536"], ["--port 65536 is out of range"]),
        (["--ckpt_path=a", "--port=-1"], ["--port -1 is out of range"]),
        (["--ckpt_path=a", "--port=http"], ["--port: expected int"]),
        (["--ckpt_path=a", "--host=no.such.host.invalid"], ["--host no.such.host.invalid"]),
        (["--ckpt_path=a", "--host=127..0.0.1"], ["--host 127..0.0.1: no such address"]),
        (["--ckpt_path=a", "--host=192.0.2.1"], ["--host 192.0.2.1 is not an address of this"]),
        (["--ckpt_path=a", "--token="], ["--token is empty or has other characters"]),
        (["--ckpt_path=a", "--token=é"], ["--token is empty or has other characters"]),
        (["--ckpt_path=a", "--max_streams=0"], ["--max_streams 0 must be 1 or more"]),
        (["--ckpt_path=a", "--timeout=-3"], ["--timeout -3 must be 1 or more"]),
        (["--ckpt_path=a", "--log=all"], ["--log: invalid choice: 'all'"]),
        (["--ckpt_path=a", "--device=tpu"], ["--device tpu is not available"]),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    makemoe: Call, flags: list[str], words: list[str]
) -> None:
    refused(makemoe, 2, words, "serve", *flags)


def test_an_origin_that_is_none_is_told(makemoe: Call, copied: Path) -> None:
    ended = makemoe("serve", "--ckpt_path=last", "--port=0", "--allow_origin=example.com")
    assert ended.status == 2
    assert "use an origin, such as https://example.com" in ended.error


def test_a_missing_checkpoint_is_told(makemoe: Call) -> None:
    refused(makemoe, 1, ["no checkpoint"], "serve", "--ckpt_path=missing.ckpt", "--port=0")


def test_the_extra_is_named_where_it_is_missing(
    makemoe: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in ("starlette", "uvicorn"):
        with monkeypatch.context() as patched:
            for name in list(sys.modules):
                if name.startswith(("makemoe.serve", missing)):
                    patched.delitem(sys.modules, name)
            patched.setitem(sys.modules, missing, None)
            words = ["makemoe serve needs the packages", "pip install 'makemoe[serve]'"]
            refused(makemoe, 2, words, "serve", "--ckpt_path=last", "--port=0")


def test_a_server_that_others_can_reach_warns_that_it_has_no_password(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from makemoe.cli.serve import say_where

    say_where("http://192.168.1.7:8000", False, None)
    assert "other machines can reach this server, and it has no password" in capsys.readouterr().err
    for is_near, token in ((True, None), (False, "secret"), (True, "secret")):
        say_where("http://127.0.0.1:8000", is_near, token)
        said = capsys.readouterr().err
        assert "warning" not in said
        assert "secret" not in said


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_the_loopback_is_this_machine_alone(host: str) -> None:
    try:
        listener = listening(host, 0)
    except library.errors.UsageError:
        pytest.skip(f"this machine has no {host}")
    with listener:
        assert is_local(listener)
        assert url_of(listener).startswith(("http://127.0.0.1:", "http://[::1]:"))


def test_a_piece_does_not_wait_until_the_one_before_is_acknowledged() -> None:
    with (
        listening("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("cores", "threads", "said", "computes"),
    [(4, 4, None, 3), (4, 2, None, 2), (1, 1, None, 1), (4, 4, "4", 4)],
)
def test_one_core_is_left_for_sending_and_for_clients(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, said: str | None, computes: int
) -> None:
    from makemoe.cli import serve

    monkeypatch.setattr(serve, "cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        serve.leave_a_core()
        assert torch.get_num_threads() == computes
    finally:
        torch.set_num_threads(before)
