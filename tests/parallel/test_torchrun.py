"""torchrun: one line for an error, no process left behind, restarts that go on by themselves."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from machines import wait_for
from processes import ENVIRONMENT, assert_same_run
from soak.kinds import MARK, SMALL
from soak.running import alive

DDP = ("--trainer.strategy=ddp", "--trainer.devices=auto")
STEPS = 100


def start(folder: Path, mark: str, *options: str, restarts: int = 0) -> "subprocess.Popen[bytes]":
    """Start a fit of two processes."""
    torchrun = str(Path(sys.executable).parent / "torchrun")
    launch = ("--standalone", "--nproc_per_node=2", f"--max_restarts={restarts}")
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, torchrun, *launch, "-m", "makemoe", "fit", *SMALL, *DDP, *options],
            cwd=folder,
            env=ENVIRONMENT | {MARK: mark},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def end(mark: str) -> None:
    """Kill what is left of a run."""
    while left := alive(mark, set()):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def errors(folder: Path) -> list[str]:
    lines = (folder / "said.txt").read_text().splitlines()
    return [line for line in lines if "makemoe: error" in line]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.n_layer=x", "--model.n_layer"),
        ("--data.corpus=missing.txt", "--data.corpus"),
        ("--ckpt_path=last", "--ckpt_path last: no run in checkpoints/"),
    ],
)
def test_an_error_of_all_processes_is_told_once(tmp_path: Path, option: str, words: str) -> None:
    mark = f"once-{os.getpid()}"
    try:
        assert start(tmp_path, mark, option).wait(timeout=100) != 0
        assert len(told := errors(tmp_path)) == 1, told
        assert words in told[0]
        assert not (tmp_path / "checkpoints").exists()
    finally:
        end(mark)


def test_no_process_survives_torchrun(tmp_path: Path) -> None:
    mark = f"survives-{os.getpid()}"
    launcher = start(tmp_path, mark, "--trainer.max_steps=1000000", "--run.name=run")
    try:
        wait_for((tmp_path / "checkpoints" / "run" / "last.ckpt").exists, 100)
        launcher.kill()
        wait_for(lambda: not alive(mark, set()), 20)
    finally:
        end(mark)
        launcher.wait()


@pytest.mark.slow
def test_a_restarted_run_goes_on_in_its_folder_and_ends_as_one_that_was_not(
    tmp_path: Path,
) -> None:
    mark, steps = f"restarts-{os.getpid()}", f"--trainer.max_steps={STEPS}"
    try:
        assert start(tmp_path, mark, steps, "--run.name=whole").wait(timeout=100) == 0
        launcher = start(tmp_path, mark, steps, restarts=3)
        run = tmp_path / "checkpoints" / "run"
        wait_for((run / "last.ckpt").exists, 100)
        workers = [p for p, v in alive(mark, set()).items() if v["parent"] == str(launcher.pid)]
        os.kill(workers[1], signal.SIGKILL)
        assert launcher.wait(timeout=200) == 0, (tmp_path / "said.txt").read_text()
    finally:
        end(mark)
    assert sorted(path.name for path in run.parent.iterdir()) == ["run", "whole"]
    assert_same_run(run.parent / "whole" / "last.ckpt", run / "last.ckpt")
