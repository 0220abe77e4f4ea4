"""Processes of a run that fail, vanish or differ: all end, with one line that names which."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from ports import free_port
from processes import ENVIRONMENT

from makemoe import __version__
from makemoe.callbacks import StopOnSignal
from makemoe.cli import others, together
from makemoe.cli.strategies import check_processes
from makemoe.errors import UsageError

MEMBER = str(Path(__file__).with_name("member.py"))
HOST = socket.gethostname()

Start = Callable[..., list["subprocess.Popen[str]"]]


def place(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment of a process that a launcher has started on a machine of its own."""
    return {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)},
        **{"RANK": str(rank), "NODE_RANK": str(rank), "LOCAL_RANK": "0"},
    }


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts processes side by side; each gets a list of what to do, or is left out if None."""
    started: list[subprocess.Popen[str]] = []

    def start(*members: Sequence[str] | None, port: int = 0) -> list["subprocess.Popen[str]"]:
        port = port or free_port()
        for rank, words in enumerate(members):
            if words is None:
                continue
            started.append(
                subprocess.Popen(
                    [sys.executable, MEMBER, *words],
                    cwd=tmp_path,
                    env=ENVIRONMENT
                    | place(rank, len(members), port)
                    | {"TORCH_CPP_LOG_LEVEL": "FATAL"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """The status and the error of a process; what it cleans up is done."""
    _, err = process.communicate(timeout=100)
    return process.returncode, err


def are_known(members: Sequence["subprocess.Popen[str]"]) -> None:
    """Wait until all processes know of each other: one that is busy says so."""
    for process in members:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"


def test_processes_that_end_as_they_should_say_nothing(start: Start) -> None:
    # Patient: on a busy machine, a process may start late, and be silent for seconds.
    members = start(
        ["patient", "agree=1", "ask=a", "until=b", "until=c"],
        ["patient", "busy=1", "agree=1", "ask=b", "touch=b"],
        ["patient", "agree=1", "ask=c", "touch=c"],
    )
    for process in members:
        out, err = process.communicate(timeout=100)
        assert (process.returncode, err) == (0, "")
        assert "first: a\n" in out


def test_an_error_of_one_ends_all_and_names_it(start: Start, tmp_path: Path) -> None:
    members = start(["busy=60"], ["busy=0", "until=go", "fail=no corpus"], ["busy=60"])
    are_known(members)
    (tmp_path / "go").touch()
    first, second, third = members
    named = f"makemoe: error in process 1 on {HOST}: no corpus\n"
    assert ends(first) == (1, named)
    assert ends(second) == (1, "makemoe: error: no corpus\n")
    assert ends(third) == (1, named)


def test_an_error_of_the_first_ends_all(start: Start, tmp_path: Path) -> None:
    members = start(["busy=0", "until=go", "fail=no corpus"], ["busy=60"])
    are_known(members)
    (tmp_path / "go").touch()
    first, second = members
    assert ends(first) == (1, "makemoe: error: no corpus\n")
    assert ends(second) == (1, f"makemoe: error in process 0 on {HOST}: no corpus\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_vanishes_is_named(start: Start, number: signal.Signals) -> None:
    members = start(["busy=60"], ["busy=60"], ["busy=60"])
    are_known(members)
    first, second, third = members
    second.send_signal(number)
    line = f"makemoe: error: process 1 on {HOST} has ended, or cannot be reached; to resume: X\n"
    assert ends(first) == ends(third) == (1, line)


def test_processes_that_were_paused_together_go_on(start: Start) -> None:
    members = start(["agree=1", "busy=8", "until=b"], ["agree=1", "busy=8", "touch=b"])
    are_known(members)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for member in members:
            member.send_signal(number)
        time.sleep(3.5)  # more than a process may be silent
    assert [ends(member) for member in members] == [(0, "")] * 2


def test_a_process_that_vanishes_once_all_have_agreed_is_named(start: Start) -> None:
    first = start(["agree=1", "busy=60"], ["agree=1", "vanish", "mute"])[0]
    line = f"makemoe: error: process 1 on {HOST} has ended, or cannot be reached; to resume: X\n"
    assert ends(first) == (1, line)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_first_process_is_missed_too(start: Start, number: signal.Signals) -> None:
    members = start(["agree=1", "busy=60"], ["agree=1", "busy=60"])
    are_known(members)
    first, second = members
    first.send_signal(number)
    status, err = ends(second)
    assert status == 1
    assert err.startswith("makemoe: error: ")
    assert "process" in err
    assert err.endswith("has ended, or cannot be reached; to resume: X\n")
    assert len(err.splitlines()) == 1


def test_a_broken_connection_is_explained_by_who_ended(start: Start, tmp_path: Path) -> None:
    members = start(["busy=60"], ["busy=60"], ["busy=0", "until=go", "broken"])
    are_known(members)
    first, second, third = members
    second.kill()
    (tmp_path / "go").touch()
    for process in (first, third):
        status, err = ends(process)
        assert (status, f"process 1 on {HOST} has ended" in err) == (1, True), err
        assert len(err.splitlines()) == 1


def test_a_first_process_that_ended_before_it_was_heard_of_is_named(start: Start) -> None:
    [second] = start(None, ["broken"])
    words = "the first process, on 127.0.0.1, has ended, or cannot be reached; to resume: X"
    assert ends(second) == (1, f"makemoe: error: {words}\n")


def test_a_first_process_that_never_comes_is_told(start: Start) -> None:
    [second] = start(None, ["impatient", "agree=1"])
    words = "the first process, MASTER_ADDR 127.0.0.1, has not answered for 1 s: "
    assert ends(second) == (2, f"makemoe: error: {words}start it, or give its address\n")


def test_a_process_with_another_setting_is_refused(start: Start) -> None:
    first, second = start(["agree=1", "busy=60"], ["agree=2", "busy=60"])
    wrong = "--seed is 2 here and 1 in the first process: start all processes of a run alike\n"
    assert ends(first) == (2, f"makemoe: error in process 1 on {HOST}: {wrong}")
    assert ends(second) == (2, f"makemoe: error: {wrong}")


def test_a_port_that_is_taken_is_told_in_one_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        first = start(["busy=60"], ["busy=0"], port=port)[0]
        status, err = ends(first)
    assert status == 2
    assert err.startswith(f"makemoe: error: MASTER_PORT {port} cannot be used on this machine")
    assert "it is taken; choose another port" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("devices", "nodes", "words"),
    [
        (2, 1, "--trainer.devices 2 x --trainer.num_nodes 1 is 2, but 4 processes were"),
        (4, 1, "2 processes were started on this machine: give --trainer.devices 2"),
        (2, 2, ""),
    ],
)
def test_other_processes_than_the_launcher_started_are_refused(
    monkeypatch: pytest.MonkeyPatch, devices: int, nodes: int, words: str
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    variables = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    trainer = Namespace(num_nodes=nodes)
    if not words:
        check_processes(trainer, devices)
        return
    with pytest.raises(UsageError, match=words):
        check_processes(trainer, devices)


class Spoken:
    """Other processes, to which nothing is sent."""

    def __init__(self, started: int = 1) -> None:
        self.starts, self.said = started, dict[str, str]()

    def agree(self, settings: dict[str, str]) -> None:
        self.said = settings

    def started(self) -> int:
        return self.starts

    def of_first(self, key: str, value: Callable[[], object]) -> object:
        return value()


def test_all_is_compared_but_where_the_text_and_runs_are_and_who_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoken = Spoken()
    monkeypatch.setattr(others, "current", spoken)
    monkeypatch.setattr(others, "is_started_together", lambda: True)
    settings = Namespace(
        seed=3,
        model=Namespace(n_embd=8),
        data=Namespace(corpus="a.txt", num_workers=2, batch_size=7),
        run=Namespace(root="b", name="c"),
    )
    together.check_alike(settings, None, 30)
    assert spoken.said == {
        **{"makemoe": __version__, "torch": torch.__version__},
        **{"--seed": "3", "--model.n_embd": "8", "--data.batch_size": "7", "--run.name": "c"},
        **{"the text": "", "the step of the checkpoint": "30"},
    }


@pytest.mark.parametrize(("started", "is_new"), [(1, False), (2, True)])
def test_restarted_processes_connect_through_another_port_that_is_free(
    monkeypatch: pytest.MonkeyPatch, started: int, is_new: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        variables = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        for name, value in (variables | {"MASTER_PORT": port}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(others, "current", Spoken(started))
        together.renew_store()
        own = os.environ["MASTER_PORT"]
        assert (own != port) == is_new
        assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == str(not is_new)
        if is_new:
            socket.create_server(("127.0.0.1", int(own))).close()


def test_the_page_has_the_times_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert f"all others end after {others.SILENT_S:.0f} s" in page
    assert f"for the first machine {others.JOIN_S / 60:.0f} minutes" in page
    assert f"all save after at most {StopOnSignal.AGREE_EVERY} steps" in page
