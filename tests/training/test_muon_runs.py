"""Runs with Muon from the command line: killed and resumed, on two processes, with new settings."""

import signal
from pathlib import Path

import pytest
import torch
from processes import TINY, assert_same_run, fit, start, stop_when
from ranks import fit_in_two

MUON = (
    *TINY,
    "--model.optimizer=Muon",
    "--model.optimizer.lr=0.01",
    "--model.optimizer.weight_decay=0.1",
    "--model.param_groups=MuonMatrices",
    "--model.lr_scheduler=WarmupStableDecay",
    "--model.lr_scheduler.warmup_steps=5",
    "--model.lr_scheduler.total_steps=40",
    "--trainer.gradient_clip_val=1.0",
    "--data.batch_size=8",
)


NOISY = (
    *("--model.dropout=0.1", "--model.router=NoisyTopKRouter"),
    *("--model.averaging=ExponentialAverage", "--model.averaging.decay=0.9"),
    *("--trainer.max_steps=40", "--run.save_every_n_steps=7"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all steps at once."""
    return fit(tmp_path_factory.mktemp("whole"), *MUON, *NOISY, "--run.name=run") / "run"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_with_muon_resumes_to_the_same_weights_bit_for_bit(
    tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, *MUON, *NOISY, "--run.name=run")
    run = tmp_path / "checkpoints" / "run"
    status = stop_when(process, run / "last.ckpt", number)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    assert step_of(run) < 40, "stopped too late to show anything"
    fit(tmp_path, "--ckpt_path=last")
    assert_same_run(whole / "last.ckpt", run / "last.ckpt")


def test_two_processes_take_one_process_s_steps_with_muon(tmp_path: Path) -> None:
    # In float64, because in each step orthogonalisation magnifies what rounding changes, by up to
    # 3.4445^5 = 485: eight steps of lr 0.01 left differences of 1e-14, in float32 of 1e-4.
    steps = (
        "--trainer.max_steps=8",
        "--trainer.limit_val_batches=0",
        "--trainer.precision=64-true",
    )
    fit(tmp_path, *MUON, *steps, "--run.name=one")
    runs = fit_in_two(tmp_path, *MUON, *steps, "--run.name=two")
    one, two = (held(runs / run)["state_dict"] for run in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=0, atol=1e-11)


def test_settings_given_at_a_resume_are_used_for_both_methods(tmp_path: Path) -> None:
    few = ("--trainer.limit_val_batches=0",)
    fit(tmp_path, *MUON, *few, "--trainer.max_steps=6", "--run.name=run")
    faster = ("--model.optimizer.lr=0.02", "--model.optimizer.adamw_lr=0.004")
    runs = fit(tmp_path, "--ckpt_path=last", *faster, "--trainer.max_steps=7")
    groups = held(runs / "run")["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [0.02, 0.02, 0.004, 0.004]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0, 0.0]
    process = start(tmp_path, "--ckpt_path=last", "--model.param_groups=null")
    assert process.wait(timeout=300) == 2
    *_, told = (tmp_path / "stderr.txt").read_text().splitlines()
    assert told.startswith("makemoe: error: --model.optimizer: Muon is for matrices, and a weight")
    assert told.endswith("--model.param_groups MuonMatrices, which leaves the others to AdamW")


def test_more_steps_given_while_the_rate_is_stable_are_as_if_planned(tmp_path: Path) -> None:
    few = (*MUON, "--trainer.limit_val_batches=0")
    longer = ("--model.lr_scheduler.total_steps=12", "--trainer.max_steps=12")
    fit(tmp_path, *few, *longer, "--run.name=planned")
    # Of 10 steps the last would go down, of 12 the last two: at step 9 both are at the peak.
    shorter = ("--model.lr_scheduler.total_steps=10", "--model.lr_scheduler.decay_share=0.1")
    fit(tmp_path, *few, *shorter, "--trainer.max_steps=9", "--run.name=run")
    runs = fit(tmp_path, "--ckpt_path=last", *longer, "--model.lr_scheduler.decay_share=0.2")
    assert_same_run(runs / "planned" / "last.ckpt", runs / "run" / "last.ckpt")


def held(run: Path) -> dict:
    return torch.load(run / "last.ckpt", weights_only=True)


def step_of(run: Path) -> int:
    return int(held(run)["global_step"])
