"""Processes that load batches: what they say when the one they load for is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from makemoe.data.datamodule import TextDataModule
from makemoe.data.workers import end_quietly

KILLED = 10


def load() -> None:
    """Load batches without end; each is sent by a thread of a worker."""
    data = TextDataModule(block_size=16, eval_batch_size=4, test_corpus="sample", num_workers=2)
    batches = data.test_dataloader()
    while True:
        for _ in batches:
            pass


def test_they_say_nothing_when_the_process_they_load_for_is_killed() -> None:
    # Without `end_quietly`, every third kill shows a traceback.
    command = [sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def kill_many() -> None:
    """Start processes that load, and kill each at another moment; their workers end later."""
    torch.set_num_threads(1)
    for number in range(KILLED):
        if not (pid := os.fork()):
            load()
        time.sleep(0.3 + 0.02 * number)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_other_exceptions_of_their_threads_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("makemoe.data.workers.ORPHANED_S", 0.01)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    end_quietly(0)
    sys.excepthook(ValueError, ValueError("a bug"), None)
    assert "ValueError: a bug" in capsys.readouterr().err


if __name__ == "__main__":
    kill_many()
