"""Training counts optimizer steps: it validates, saves and stops only where one ends."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from processes import assert_same_run
from trainers import rows, run, step_of, validated

from makemoe.callbacks import StopOnSignal
from makemoe.training.steps import count_steps

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning advises, and calls torch in old ways

ACCUMULATED = {"accumulate_grad_batches": 2, "val_check_interval": 5, "max_steps": 14}


class StopAt(Callback):
    """Tells the run to stop at a training batch, counted from 1."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            trainer.should_stop = True


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, **ACCUMULATED)
    return folder


def test_validations_are_counted_in_steps(whole: Path) -> None:
    assert validated(whole) == [5, 10]
    assert step_of(whole / "last.ckpt") == 14


def test_a_run_that_goes_on_from_its_best_is_the_run(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, resume=whole / "best.ckpt", **ACCUMULATED)
    assert_same_run(whole / "last.ckpt", tmp_path / "last.ckpt")


@pytest.mark.parametrize("batch", [13, 14, 15, 20])
def test_a_run_told_to_stop_at_any_batch_ends_its_step_and_resumes_as_one(
    whole: Path, tmp_path: Path, batch: int
) -> None:
    stopped = run(tmp_path, StopAt(batch), **ACCUMULATED)
    assert stopped.global_step == (batch + 1) // 2
    assert rows(tmp_path) == rows(whole)[: len(rows(tmp_path))]
    assert validated(tmp_path) == [step for step in (5, 10) if step <= stopped.global_step]
    run(tmp_path, resume=tmp_path / "last.ckpt", **ACCUMULATED)
    assert_same_run(whole / "last.ckpt", tmp_path / "last.ckpt")
    assert_same_run(whole / "best.ckpt", tmp_path / "best.ckpt")
    assert rows(tmp_path) == rows(whole)


def test_a_run_that_its_time_ended_resumes_as_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(Callback):
        batches = 0

        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            self.batches += 1

    clock = Clock()
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: float(clock.batches))
    stopped = run(tmp_path, clock, max_time="00:00:00:09", **ACCUMULATED)
    assert stopped.global_step == 5  # batch 9 is inside the fifth step, at which it validates
    assert validated(tmp_path) == [5]
    monkeypatch.undo()
    run(tmp_path, resume=tmp_path / "last.ckpt", **ACCUMULATED)
    assert_same_run(whole / "last.ckpt", tmp_path / "last.ckpt")


def test_a_run_that_stops_early_resumes_as_one(whole: Path, tmp_path: Path) -> None:
    early = EarlyStopping("val_loss", stopping_threshold=100.0)
    assert run(tmp_path, early, **ACCUMULATED).global_step == 5
    run(tmp_path, resume=tmp_path / "last.ckpt", **ACCUMULATED)
    assert_same_run(whole / "last.ckpt", tmp_path / "last.ckpt")
    assert rows(tmp_path) == rows(whole)


def test_a_least_number_of_steps_holds_no_longer_than_it_says(tmp_path: Path) -> None:
    early = EarlyStopping("val_loss", stopping_threshold=100.0)
    assert run(tmp_path, early, min_steps=3, **ACCUMULATED).global_step == 5
    told = run(tmp_path / "told", StopAt(3), min_steps=7, **ACCUMULATED)
    assert told.global_step == step_of(tmp_path / "told" / "last.ckpt") == 7


@pytest.mark.parametrize("counts", [count_steps, lambda trainer: None])
def test_who_asks_to_stop_does_not_wait_for_the_least_number_of_steps(
    tmp_path: Path, counts: Any
) -> None:
    class Asks(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 1 and signals.received is None:
                signal.raise_signal(signal.SIGTERM)

    signals = StopOnSignal()
    told = run(tmp_path, signals, Asks(), counts=counts, min_steps=9, **ACCUMULATED)
    assert told.global_step == 2


class Seen(Callback):
    """Counts the batches of each step, and the batches at whose end it validates."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.count = 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.count += 1
        if len(self.batches) + self.begin < trainer.global_step:
            self.batches.append(self.count)
            self.count = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin = trainer.global_step


def test_a_run_resumed_with_other_batches_a_step_begins_with_a_whole_step(tmp_path: Path) -> None:
    run(tmp_path, accumulate_grad_batches=3, val_check_interval=5, max_steps=5)
    seen = Seen()
    run(
        tmp_path,
        seen,
        resume=tmp_path / "last.ckpt",
        accumulate_grad_batches=2,
        val_check_interval=6,
        max_steps=13,
    )
    assert seen.batches == [2] * 8
    assert validated(tmp_path) == [5, 6, 12]
    assert [row["step"] for row in rows(tmp_path)] == ["2", "4", "5", "6", "8", "10", "12"]
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert held["epoch_loop.batch_progress"]["total"]["processed"] == 5 * 3 + 8 * 2


def test_in_a_trainer_that_counts_batches_nothing_is_saved_inside_a_step(tmp_path: Path) -> None:
    settings = ACCUMULATED | {"val_check_interval": 3, "max_steps": 3}
    run(tmp_path, counts=lambda trainer: None, **settings)
    assert step_of(tmp_path / "best.ckpt") == 3
    run(tmp_path / "cut", StopAt(3), counts=lambda trainer: None, **settings)
    assert not (tmp_path / "cut" / "last.ckpt").exists()


def test_overfitting_trains_and_validates_on_the_same_batches(tmp_path: Path) -> None:
    class Batches(Callback):
        def __init__(self) -> None:
            self.trained: list[torch.Tensor] = []
            self.validated: list[torch.Tensor] = []

        def on_train_batch_end(
            self, trainer: Any, module: Any, out: Any, batch: Any, *_: Any
        ) -> None:
            self.trained.append(batch[0])

        def on_validation_batch_end(
            self, trainer: Any, module: Any, out: Any, batch: Any, *_: Any
        ) -> None:
            self.validated.append(batch[0])

    seen = Batches()
    settings = {"val_check_interval": 3, "max_steps": 3, "accumulate_grad_batches": 2}
    run(tmp_path, seen, overfit_batches=3, **settings)
    assert len(seen.trained) == 6
    assert all(torch.equal(a, b) for a, b in zip(seen.trained, seen.validated * 2, strict=True))
    assert len({tuple(batch.flatten().tolist()) for batch in seen.trained}) == 3


def test_the_first_drift_is_not_measured_against_the_sanity_check(tmp_path: Path) -> None:
    run(tmp_path, num_sanity_val_steps=2, val_check_interval=2, max_steps=4)
    drifts = ["val_router/drift" in row for row in rows(tmp_path) if "val_loss" in row]
    assert drifts == [False, True]
