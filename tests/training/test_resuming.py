"""What a resumed run takes from its checkpoint, and what from the user."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from policies import MatrixMomentum
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from makemoe.errors import CheckpointError, UsageError
from makemoe.training.module import LanguageModel
from makemoe.training.optim import WarmupCosine
from makemoe.training.param_groups import DecayMatrices, weights_of
from makemoe.training.resuming import (
    GROUPS,
    check_optimizer,
    names_by_group,
    overrule,
    regroup,
)

STEPS = 3


def model(**settings: Any) -> LanguageModel:
    sizes = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "num_experts": 2}
    return LanguageModel(vocab_size=5, **sizes, **settings)


def step(net: LanguageModel, optimizer: Optimizer, schedule: LRScheduler | None) -> None:
    net.net(torch.zeros(1, 8, dtype=torch.int64))[0].square().sum().backward()
    optimizer.step()
    if schedule is not None:
        schedule.step()


def trained(**settings: Any) -> tuple[LanguageModel, dict[str, Any]]:
    """A model, and what a checkpoint holds of its optimizer after some steps."""
    net = model(**{"optimizer": partial(AdamW, lr=0.1)} | settings)
    optimizer, schedule = net.build_optimizer()
    for _ in range(STEPS):
        step(net, optimizer, schedule)
    return net, {
        "global_step": STEPS,
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [] if schedule is None else [schedule.state_dict()],
        GROUPS: names_by_group(optimizer, weights_of(net.net)),
    }


def resumed(net: LanguageModel, checkpoint: dict[str, Any]) -> tuple[Optimizer, LRScheduler | None]:
    """The optimizer and schedule that go on, as Lightning loads them."""
    optimizer, schedule = net.build_optimizer()
    regroup(checkpoint, optimizer, weights_of(net.net))
    overrule(checkpoint, optimizer, schedule)
    check_optimizer(checkpoint, optimizer, schedule)
    optimizer, schedule = net.build_optimizer()
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    if schedule is not None:
        schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    return optimizer, schedule


def with_settings(net: LanguageModel, **settings: Any) -> LanguageModel:
    """The same weights with other settings."""
    other = model(**settings)
    other.load_state_dict(net.state_dict())
    return other


COSINE = partial(WarmupCosine, warmup_steps=0, total_steps=10)


def test_a_changed_learning_rate_overrules_the_checkpoint_and_moments_stay() -> None:
    net, checkpoint = trained(lr_scheduler=COSINE)
    before = copy.deepcopy(checkpoint["optimizer_states"][0]["state"])
    optimizer, _ = resumed(with_settings(net, optimizer=partial(AdamW, lr=0.02)), checkpoint)
    assert optimizer.param_groups[0]["lr"] == 0.02
    torch.testing.assert_close(optimizer.state_dict()["state"], before)


@pytest.mark.parametrize("hostile", [2**31, 0.5, None, torch.zeros(99), torch.zeros(1).long()])
def test_a_moment_that_no_step_would_give_is_refused(hostile: object) -> None:
    net, checkpoint = trained()
    optimizer, _ = net.build_optimizer()
    check_optimizer(checkpoint, optimizer, None)
    checkpoint["optimizer_states"][0]["state"][3]["exp_avg_sq"] = hostile
    with pytest.raises(CheckpointError, match="exp_avg_sq of parameter 3"):
        check_optimizer(checkpoint, optimizer, None)


@pytest.mark.parametrize("before", [None, COSINE], ids=["added", "changed"])
def test_a_schedule_given_at_a_resume_is_where_it_would_be_had_it_been_there_from_the_start(
    before: Any,
) -> None:
    net, checkpoint = trained(lr_scheduler=before)
    settings = {
        "optimizer": partial(AdamW, lr=0.2),
        "lr_scheduler": partial(WarmupCosine, warmup_steps=2, total_steps=50),
    }
    optimizer, schedule = resumed(with_settings(net, **settings), checkpoint)
    straight = model(**settings)
    expected = straight.build_optimizer()
    for _ in range(STEPS):
        step(straight, *expected)
    for _ in range(4):
        assert optimizer.param_groups[0]["lr"] == expected[0].param_groups[0]["lr"]
        step(straight, *expected)
        step(net, optimizer, schedule)


@pytest.mark.parametrize("schedule", [COSINE, partial(OneCycleLR, max_lr=0.5, total_steps=9)])
def test_without_its_schedule_a_run_goes_on_with_the_optimizer_s_own_settings(
    schedule: Any,
) -> None:
    net, checkpoint = trained(lr_scheduler=schedule)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] != 0.1
    optimizer, gone = resumed(with_settings(net, optimizer=partial(AdamW, lr=0.1)), checkpoint)
    assert gone is None
    [group] = optimizer.param_groups
    assert (group["lr"], group["betas"]) == (0.1, (0.9, 0.999))


def test_a_schedule_that_ends_before_the_step_of_the_run_is_refused() -> None:
    net, checkpoint = trained()
    short = with_settings(net, lr_scheduler=partial(OneCycleLR, max_lr=0.5, total_steps=2))
    with pytest.raises(UsageError, match=r"^--model\.lr_scheduler at step 3: "):
        resumed(short, checkpoint)


def test_another_kind_of_optimizer_is_refused() -> None:
    net, checkpoint = trained()
    with pytest.raises(UsageError, match="kind of optimizer"):
        resumed(with_settings(net, optimizer=partial(SGD, lr=0.1)), checkpoint)


@pytest.mark.parametrize("first", [None, DecayMatrices()], ids=["one group", "two groups"])
def test_moments_stay_with_their_weights_when_the_groups_change(first: Any) -> None:
    net, checkpoint = trained(param_groups=first)
    wanted = moments(net, checkpoint["optimizer_states"][0], checkpoint[GROUPS])
    second = None if first else DecayMatrices()
    settings = {"optimizer": partial(AdamW, lr=0.1, weight_decay=0.3), "param_groups": second}
    other = with_settings(net, **settings)
    optimizer, _ = resumed(other, checkpoint)
    assert [g["weight_decay"] for g in optimizer.param_groups] == ([0.3] if first else [0.3, 0.0])
    names = names_by_group(optimizer, weights_of(other.net))
    torch.testing.assert_close(moments(other, optimizer.state_dict(), names), wanted)


def moments(net: LanguageModel, state: dict[str, Any], names: list[list[str]]) -> dict[str, Any]:
    """The state of each weight, by its name; each has the shape of its weight."""
    flat = [name for group in names for name in group]
    found = {flat[number]: kept for number, kept in copy.deepcopy(state["state"]).items()}
    for name, parameter in net.net.named_parameters():
        assert found[name]["exp_avg"].shape == parameter.shape
    return found


def test_a_checkpoint_without_names_has_one_group_in_the_order_of_the_model() -> None:
    net, checkpoint = trained()
    old = {key: value for key, value in checkpoint.items() if key != GROUPS}
    optimizer, schedule = net.build_optimizer()
    before = copy.deepcopy(old)
    assert not regroup(old, optimizer, weights_of(net.net))
    check_optimizer(old, optimizer, schedule)
    assert old.keys() == before.keys()
    optimizer.load_state_dict(old["optimizer_states"][0])
    torch.testing.assert_close(optimizer.state_dict(), before["optimizer_states"][0])


@pytest.mark.parametrize(
    "names", [[["a", "b"]], [[]], [3], ["text"], [[["head.weight"]]], [[None]], []]
)
def test_names_of_other_parameters_are_refused(names: Any) -> None:
    net, checkpoint = trained()
    optimizer, _ = net.build_optimizer()
    with pytest.raises(CheckpointError, match="not the parameters of the model"):
        regroup(checkpoint | {GROUPS: names}, optimizer, weights_of(net.net))


def test_each_group_keeps_what_its_own_options_need() -> None:
    net, checkpoint = trained(optimizer=partial(SGD, lr=0.1), param_groups=MatrixMomentum())
    optimizer, schedule = net.build_optimizer()
    check_optimizer(checkpoint, optimizer, schedule)
    state = checkpoint["optimizer_states"][0]["state"]
    others = len(optimizer.param_groups[0]["params"])
    assert 0 not in state
    state[0] = state[others]
    with pytest.raises(CheckpointError, match="parameter 0 has unexpected entries"):
        check_optimizer(checkpoint, optimizer, schedule)
