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
