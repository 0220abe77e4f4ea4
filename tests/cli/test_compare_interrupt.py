"""Ctrl-C while `makemoe compare` and `makemoe sweep` plan: a process of their own imports torch."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from nursery import MAKEMOE
from processes import ENVIRONMENT

SPACE = "sweep: {trials: 2, space: {model.top_k: {int: [1, 2]}}}"
PATIENCE_S = 60.0


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_ctrl_c_while_planning_ends_it_without_a_traceback(tmp_path: Path, command: str) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    varied = ["--vary=model.top_k=1,2"] if command == "compare" else ["--config=space.yaml"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [MAKEMOE, command, "--config=quickstart", *varied],
        cwd=tmp_path,
        env=dict(ENVIRONMENT) | {"TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What runs us in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + PATIENCE_S
    while not list(scratch.glob("*/request.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)  # it imports torch, which takes seconds
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, told = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, told) == (128 + signal.SIGINT, "")
    assert not list(scratch.iterdir())
    assert not (tmp_path / "checkpoints").exists()
