"""Runs with Muon from the command line: killed and resumed, on two processes, with new settings."""

import signal
from pathlib import Path

import pytest
import torch
from processes import DDP, TINY, assert_same_run, fit, start, stop_when

MUON = (
    *TINY,
    "--model.optimizer=makemoe.training.muon.Muon",
    "--model.optimizer.lr=0.01",
    "--model.optimizer.weight_decay=0.1",
    "--model.param_groups=MuonMatrices",
    "--model.lr_scheduler=WarmupStableDecay",
    "--model.lr_scheduler.warmup_steps=5",
    "--model.lr_scheduler.total_steps=40",
    "--trainer.gradient_clip_val=1.0",
    "--data.batch_size=8",
)


def test_a_killed_run_with_muon_resumes_to_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    noisy = ("--model.dropout=0.1", "--model.router=NoisyTopKRouter")
    steps = ("--trainer.max_steps=40", "--run.save_every_n_steps=7")
    runs = fit(tmp_path, *MUON, *noisy, *steps, "--run.name=whole")
    process = start(tmp_path, *MUON, *noisy, *steps, "--run.name=run")
    assert stop_when(process, runs / "run" / "last.ckpt", signal.SIGKILL) == -signal.SIGKILL
    assert step_of(runs / "run") < 40, "killed too late to show anything"
    fit(tmp_path, "--ckpt_path=last")
    assert_same_run(runs / "whole" / "last.ckpt", runs / "run" / "last.ckpt")


@pytest.mark.parametrize("more", [(), ("--trainer.precision=bf16-mixed",)], ids=["float32", "bf16"])
def test_two_processes_take_one_process_s_steps_with_muon(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    steps = ("--trainer.max_steps=8", "--trainer.limit_val_batches=0", *more)
    fit(tmp_path, *MUON, *steps, "--run.name=one")
    runs = fit(tmp_path, *DDP, *MUON, *steps, "--run.name=two")
    one, two = (held(runs / run)["state_dict"] for run in ("one", "two"))
    for name, weight in one.items():
        # Orthogonalisation magnifies what rounding changes; a step of lr 0.01 is far longer.
        torch.testing.assert_close(weight, two[name], rtol=0, atol=1e-4 if not more else 3e-2)


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
    assert told.startswith("makemoe: error: --model.optimizer: Muon turns matrices, and a weight")
    assert told.endswith("give --model.param_groups makemoe.training.muon.MuonMatrices")


def held(run: Path) -> dict:
    return torch.load(run / "last.ckpt", weights_only=True)


def step_of(run: Path) -> int:
    return int(held(run)["global_step"])
