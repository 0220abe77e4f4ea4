"""Runs with Muon, every schedule and every rule of averaging resume bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trainers
from processes import assert_same_run

from makemoe.checkpoint.format import read
from makemoe.training.averaging import EqualAverage, ExponentialAverage
from makemoe.training.muon import Muon, MuonMatrices
from makemoe.training.optim import WarmupCosine, WarmupLinear, WarmupStableDecay

SCHEDULES = [WarmupCosine, WarmupLinear, WarmupStableDecay]
AVERAGES: dict[str, Any] = {
    "none": None,
    "exponential": ExponentialAverage(0.8),
    "equal": EqualAverage(start_step=4),
}
STEPS, STOP = 12, 7  # the rate is rising at first, and falling when the run stops and at its end


@pytest.mark.filterwarnings("ignore")  # Lightning advises on loaders, and calls torch in old ways
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_run_is_the_whole_one_bit_for_bit(
    tmp_path: Path, schedule: Any, average: str
) -> None:
    more = {"decay_share": 0.7} if schedule is WarmupStableDecay else {}
    parts = {
        "optimizer": partial(Muon, lr=0.01),
        "param_groups": MuonMatrices(),
        "lr_scheduler": partial(schedule, warmup_steps=2, total_steps=STEPS, **more),
        "averaging": AVERAGES[average],
    }
    settings = {"parts": parts, "val_check_interval": 5, "limit_val_batches": 1}
    trainers.run(tmp_path / "whole", max_steps=STEPS, **settings)
    trainers.run(tmp_path / "run", max_steps=STOP, **settings)
    last = tmp_path / "run" / "last.ckpt"
    rates = [group["lr"] for group in read(last)["optimizer_states"][0]["param_groups"]]
    assert 0 < rates[0] < 0.01
    trainers.run(tmp_path / "run", resume=last, max_steps=STEPS, **settings)
    assert_same_run(tmp_path / "whole" / "last.ckpt", last)
    whole, resumed = (read(tmp_path / run / "last.ckpt") for run in ("whole", "run"))
    assert whole["lr_schedulers"] == resumed["lr_schedulers"]
    assert ("averaging" in whole) == (average != "none")
    if average != "none":
        a, b = whole["averaging"], resumed["averaging"]
        assert a["steps"] == b["steps"] > 1
        assert all(weight.equal(b["trained"][name]) for name, weight in a["trained"].items())
