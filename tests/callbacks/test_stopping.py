"""Signals belong to a run only while it trains, and only where Python lets it have them."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from trainers import run, step_of

from makemoe.callbacks import StopOnSignal


@pytest.mark.filterwarnings("ignore")  # Lightning advises, and calls torch in old ways
def test_a_run_in_another_thread_leaves_signals_to_the_caller(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as thread:
        thread.submit(run, tmp_path, StopOnSignal(), max_steps=2, val_check_interval=2).result()
    assert step_of(tmp_path / "last.ckpt") == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
