"""Flags given with --ckpt_path overrule the checkpoint, the optimizer's settings too."""

from pathlib import Path

import pytest
import torch
from processes import TINY, fit


@pytest.mark.parametrize(("flags", "lr"), [((), 1e-3), (("--model.optimizer.lr=0.025",), 0.025)])
def test_a_learning_rate_given_at_a_resume_is_used(
    tmp_path: Path, flags: tuple[str, ...], lr: float
) -> None:
    fit(tmp_path, *TINY, "--trainer.max_steps=4", "--run.name=run")
    runs = fit(tmp_path, "--ckpt_path=last", "--trainer.max_steps=6", *flags)
    checkpoint = torch.load(runs / "run" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == lr


def test_a_schedule_and_groups_given_at_a_resume_start_where_the_run_stands(tmp_path: Path) -> None:
    flags = (
        "--model.lr_scheduler=WarmupCosine",
        "--model.lr_scheduler.warmup_steps=2",
        "--model.lr_scheduler.total_steps=8",
    )
    fit(tmp_path, *TINY, "--trainer.max_steps=4", "--run.name=run")
    runs = fit(tmp_path, "--ckpt_path=last", "--trainer.max_steps=6", *flags)
    # After 4 of the 6 steps of half a cosine: a quarter of what is above the final tenth.
    assert held(runs) == (6, [3.25e-4], [0.01])
    groups = "--model.param_groups=DecayMatrices"
    runs = fit(tmp_path, "--ckpt_path=last", "--trainer.max_steps=8", groups)
    assert held(runs) == (8, [1e-4, 1e-4], [0.01, 0.0])
    runs = fit(tmp_path, "--ckpt_path=last", "--trainer.max_steps=9", "--model.lr_scheduler=null")
    assert held(runs) == (9, [1e-3, 1e-3], [0.01, 0.0])


def held(runs: Path) -> tuple[int, list[float], list[float]]:
    """The step of a run's last checkpoint, and the learning rate and decay of each group."""
    checkpoint = torch.load(runs / "run" / "last.ckpt", weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    rates = [round(group["lr"], 9) for group in groups]
    return checkpoint["global_step"], rates, [group["weight_decay"] for group in groups]


def test_a_plateau_named_without_its_module_is_torch_s(tmp_path: Path) -> None:
    plateau = ("--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.factor=0.5")
    patience = ("--model.lr_scheduler.patience=0", "--model.lr_scheduler.threshold=0.9")
    steps = ("--trainer.max_steps=5", "--trainer.val_check_interval=2")
    runs = fit(tmp_path, *TINY, *plateau, *patience, *steps, "--run.name=run")
    assert held(runs) == (5, [5e-4], [0.01])
