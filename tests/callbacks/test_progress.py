"""What a run says of its work when it starts, and its progress bar."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from trainers import rows, run

from makemoe.callbacks import LastCheckpoint, progress
from makemoe.callbacks.progress import (
    StepProgress,
    Throughput,
    peak_words,
    precision_line,
    steps_words,
    work_line,
)
from makemoe.training.work import Work
from makemoe.training.work_done import WorkDone

GPU = torch.device("cuda", 0)


def done(tokens: int) -> WorkDone:
    done = WorkDone(Work(parameters=9, active=5, flops=15_900_000))
    done.add(tokens)
    return done


def test_the_work_of_a_planned_run_is_said() -> None:
    assert work_line(done(0), 2_560_000) == (
        "work    15.9 MFLOPs per token, 2,560,000 tokens and 40.7 TFLOPs in all"
    )


def test_a_resumed_run_s_work_includes_what_is_done() -> None:
    assert work_line(done(1_000_000), 1_560_000) == work_line(done(0), 2_560_000)


def test_a_run_without_an_end_says_no_total() -> None:
    assert work_line(done(100), -512) == "work    15.9 MFLOPs per token"
    assert steps_words(1000, -1) == "from 1,000"


@pytest.mark.parametrize(
    ("peak", "words"), [(None, ""), (989.4e12, ", at most 989 TFLOP/s per device")]
)
def test_a_peak_is_said_where_it_is_known(peak: float | None, words: str) -> None:
    assert peak_words(peak) == words


@pytest.mark.parametrize(
    ("device", "capability", "precision", "matmul", "hinted"),
    [
        (GPU, (8, 0), "32-true", "highest", True),
        (GPU, (9, 0), "32-true", "highest", True),
        (GPU, (9, 0), "32-true", "high", False),
        (GPU, (9, 0), "bf16-mixed", "highest", False),
        (GPU, (7, 5), "32-true", "highest", False),
        (torch.device("cpu"), None, "32-true", "highest", False),
    ],
)
def test_a_gpu_with_faster_products_than_float32_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    capability: tuple[int, int] | None,
    precision: str,
    matmul: str,
    hinted: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: matmul)
    lines = precision_line(device, precision)
    assert [line.split()[0] for line in lines] == ["hint"] * hinted


@pytest.mark.filterwarnings("ignore")  # Lightning advises, and calls torch in old ways
@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_s_bar_goes_back_to_the_beginning_of_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(StepProgress, "LOG_S", 0.0)
    run(tmp_path, StepProgress(), max_steps=4, val_check_interval=2, enable_progress_bar=True)
    told = shown.getvalue()
    assert told.endswith("\n")
    assert ("\r" in told) == terminal
    if not terminal:
        states = told.splitlines()
        assert [line.split("/4 ")[0].split()[-1] for line in states] == list("012344")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save_s", [0, 1000])
def test_the_speed_is_that_without_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_s: int
) -> None:
    clock, save = [0.0], LastCheckpoint.save

    def now() -> float:
        clock[0] += 0.25  # between the beginning and the end of an interval
        return clock[0]

    def slow(self: LastCheckpoint, trainer: Trainer) -> None:
        save(self, trainer)
        clock[0] += save_s

    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=now))
    monkeypatch.setattr(LastCheckpoint, "save", slow)
    run(tmp_path, Throughput(), max_steps=11, val_check_interval=20, log_every_n_steps=5)
    speeds = [float(row["tokens_per_second"]) for row in rows(tmp_path)]
    # 5 steps of 4 windows of 8 tokens, in two intervals: checkpoints are due at steps 4 and 8.
    assert speeds == [5 * 4 * 8 / (2 * 0.25)] * 2
