"""What a resumed run takes from its checkpoint, and what from the user."""

import copy
from typing import Any

import pytest
import torch

from makemoe.errors import CheckpointError, UsageError
from makemoe.training.module import LanguageModel, overrule
from makemoe.training.optim import WarmupCosine


def model(**settings: Any) -> LanguageModel:
    sizes = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "num_experts": 2}
    return LanguageModel(vocab_size=5, **sizes, **settings)


def trained_state(steps: int = 3) -> tuple[LanguageModel, dict[str, Any]]:
    """A model and a checkpoint of its optimizer (lr 0.1) after some steps."""
    net = model(optimizer=lambda p: torch.optim.AdamW(p, lr=0.1))
    optimizer, _ = net.build_optimizer()
    schedule = WarmupCosine(optimizer, warmup_steps=0, total_steps=10)
    for _ in range(steps):
        net.net(torch.zeros(1, 8, dtype=torch.int64))[0].sum().backward()
        optimizer.step()
        schedule.step()
    return net, {
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
    }


def test_a_changed_learning_rate_overrules_the_checkpoint_and_moments_stay() -> None:
    net, checkpoint = trained_state()
    before = copy.deepcopy(checkpoint["optimizer_states"][0]["state"])
    optimizer = torch.optim.AdamW(net.net.parameters(), lr=0.02)
    overrule(checkpoint, optimizer, None)
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert checkpoint["lr_schedulers"] == []
    after = optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before)


def test_a_changed_schedule_goes_on_at_the_step_it_had_reached() -> None:
    net, checkpoint = trained_state(steps=3)
    optimizer = torch.optim.AdamW(net.net.parameters(), lr=0.2)
    schedule = WarmupCosine(optimizer, warmup_steps=0, total_steps=100)
    overrule(checkpoint, optimizer, schedule)
    schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    assert schedule.last_epoch == 3
    straight = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.2)
    expected = WarmupCosine(straight, warmup_steps=0, total_steps=100)
    for _ in range(3):
        straight.step()
        expected.step()
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(straight.param_groups[0]["lr"])
    for stepped in (straight, expected, optimizer, schedule):
        stepped.step()
    assert schedule.get_last_lr() == pytest.approx(expected.get_last_lr())


def test_another_kind_of_optimizer_is_refused() -> None:
    net, checkpoint = trained_state()
    with pytest.raises(UsageError, match="kind of optimizer"):
        overrule(checkpoint, torch.optim.SGD(net.net.parameters(), lr=0.1), None)


def test_weights_of_another_model_are_refused_in_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"^the checkpoint's weights are not .*\S$"):
        model().load_state_dict(model(top_k=1, capacity_factor=1.0).state_dict() | {"net.x": 1})
