"""A run that is killed or stopped and resumed ends as the run that was not."""

import csv
import signal
from pathlib import Path

import pytest
import torch
from processes import DDP, TINY, assert_same_run, fit, start, stop_when
from ranks import fit_in_two

# Dropout and router noise draw random numbers; accumulation makes a step of two batches; 7 divides
# neither the validations nor the logged steps.
NOISY = (
    *TINY,
    "--model.router=NoisyTopKRouter",
    "--model.dropout=0.1",
    "--model.capacity_factor=1.0",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.max_steps=50",
    "--run.save_every_n_steps=7",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("whole"), *NOISY, "--run.name=run") / "run"


def steps(run: Path) -> list[int]:
    with (run / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def without_speed(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if name != "tokens_per_second"}
            for row in csv.DictReader(file)
        ]


def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *NOISY, "--run.name=run")
    run = tmp_path / "checkpoints" / "run"
    assert stop_when(process, run / "last.ckpt", signal.SIGKILL) == -signal.SIGKILL
    assert steps(run)[-1:] != [50], "killed too late to show anything"
    fit(tmp_path, "--ckpt_path=last")
    assert_same_run(whole / "last.ckpt", run / "last.ckpt")
    assert without_speed(run) == without_speed(whole)
    assert sorted(p.name for p in run.iterdir() if p.suffix != ".0") == [
        "best.ckpt",
        "config.yaml",
        "last.ckpt",
        "metrics.csv",
        "samples.txt",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_by_a_signal_leaves_a_checkpoint_and_resumes_as_one(
    whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, *NOISY, "--run.name=run")
    run = tmp_path / "checkpoints" / "run"
    assert stop_when(process, run / "metrics.csv", number) == 128 + number
    told = (tmp_path / "stderr.txt").read_text()
    assert f"{number.name}: stopped at step" in told
    assert "makemoe fit --ckpt_path checkpoints/run/last.ckpt" in told
    assert "Traceback" not in told
    fit(tmp_path, "--ckpt_path=checkpoints/run/last.ckpt")
    assert_same_run(whole / "last.ckpt", run / "last.ckpt")
    assert without_speed(run) == without_speed(whole)
    assert (run / "samples.txt").read_text() == (whole / "samples.txt").read_text()


def test_two_killed_processes_resume_to_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    runs = fit_in_two(tmp_path, *NOISY, "--run.name=whole")
    process = start(tmp_path, *DDP, *NOISY, "--run.name=run")
    assert stop_when(process, runs / "run" / "last.ckpt", signal.SIGKILL) == -signal.SIGKILL
    fit_in_two(tmp_path, "--ckpt_path=checkpoints/run/last.ckpt")
    assert_same_run(runs / "whole" / "last.ckpt", runs / "run" / "last.ckpt")


def test_two_processes_stopped_by_a_signal_to_one_leave_a_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path, *DDP, *NOISY, "--trainer.max_steps=5000", "--run.name=run")
    run = tmp_path / "checkpoints" / "run"
    assert stop_when(process, run / "metrics.csv", signal.SIGTERM) == 128 + signal.SIGTERM
    step = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert step % 10 == 0 or step % 15 == 0  # or after a validation
