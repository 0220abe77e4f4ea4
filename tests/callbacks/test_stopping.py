"""Signals belong to a run only while it trains, and only where Python lets it have them."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lightning.pytorch import Callback, Trainer
from trainers import run, step_of

from makemoe import process
from makemoe.callbacks import StopOnSignal
from makemoe.cli import interrupts


@pytest.mark.filterwarnings("ignore")  # Lightning advises, and calls torch in old ways
def test_a_run_in_another_thread_leaves_signals_to_the_caller(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as thread:
        thread.submit(run, tmp_path, StopOnSignal(), max_steps=2, val_check_interval=2).result()
    assert step_of(tmp_path / "last.ckpt") == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.filterwarnings("ignore")  # Lightning advises
def test_after_a_run_signals_are_the_caller_s_again(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(tmp_path, StopOnSignal(), max_steps=2, val_check_interval=2)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("stops", [False, True])
def test_the_end_of_the_parent_does_not_cut_short_a_stop_it_has_asked_for(
    monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *call: sent.append(call))
    monkeypatch.setattr(process, "stops", stops)
    interrupts._stop_with(os.getppid() + 1)
    assert sent == ([] if stops else [(os.getpid(), signal.SIGTERM)])


@pytest.mark.filterwarnings("ignore")  # Lightning advises
def test_a_signal_in_training_is_known_to_the_process(tmp_path: Path) -> None:
    class Signals(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            assert not process.stops
            signal.raise_signal(signal.SIGTERM)
            assert process.stops

    run(tmp_path, StopOnSignal(), Signals(), max_steps=2, val_check_interval=2)
    assert step_of(tmp_path / "last.ckpt") == 1
