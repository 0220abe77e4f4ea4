"""Every router and every balancer trains a model of all the newer parts."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import trainers
from modern import MODERN

from makemoe.model.init import FanInNormal
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, TopKRouter
from makemoe.training.balance import BiasBalance, ImportanceLoss, LoadLoss, SwitchLoss, ZLoss

PARTS = {**MODERN, "n_layer": 2, "n_head": 2, "n_embd": 16, "init": FanInNormal()}
EACH = [SwitchLoss(), ImportanceLoss(), ZLoss()]
BALANCED: dict[Any, list[Any]] = {
    TopKRouter: EACH,
    NoisyTopKRouter: [*EACH, LoadLoss()],
    BiasedTopKRouter: [*EACH, BiasBalance(0.01, calibration_tokens=200)],
}


@pytest.mark.filterwarnings("ignore")  # Lightning advises on loaders, and calls torch in old ways
@pytest.mark.parametrize("router", BALANCED)
def test_every_router_and_balancer_trains_two_steps(router: Any, tmp_path: Path) -> None:
    parts = PARTS | {"router": router, "balancers": BALANCED[router]}
    trainers.run(tmp_path, parts=parts, max_steps=2, val_check_interval=2, limit_val_batches=1)
    logged = {name: float(value) for row in trainers.rows(tmp_path) for name, value in row.items()}
    assert {name for name in logged if name.startswith("balance/") and "_" not in name} == {
        f"balance/{type(balancer).__name__}"
        for balancer in BALANCED[router]
        if not isinstance(balancer, BiasBalance)
    }
    assert all(math.isfinite(value) for value in logged.values())
    # The first layer is dense.
    assert {name.split("/")[1] for name in logged if "/layer_" in name} == {"layer_1"}
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(held["net.head.weight"], held["net.token_embedding.weight"])
    if router is BiasedTopKRouter:
        bias_E = held["net.blocks.1.moe.routed.router.bias_E"]
        assert bias_E.abs().max().item() == pytest.approx(0.02, abs=0.011)
