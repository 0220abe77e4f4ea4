"""What a resumed run takes from its checkpoint, and what from the user."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from policies import MatrixMomentum
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from makemoe.errors import CheckpointError, UsageError
from makemoe.training.module import LanguageModel
from makemoe.training.muon import Muon, MuonMatrices
from makemoe.training.optim import WarmupCosine
from makemoe.training.param_groups import DecayMatrices, Weight, weights_of
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


def test_adam_does_not_go_on_with_a_run_of_adamw_which_has_the_same_options() -> None:
    net, checkpoint = trained()
    checkpoint["hyper_parameters"] = {"optimizer": {"class_path": "torch.optim.AdamW"}}
    with pytest.raises(UsageError, match="kind of optimizer"):
        resumed(with_settings(net, optimizer=partial(Adam, lr=0.1)), checkpoint)
    resumed(with_settings(net, optimizer=partial(AdamW, lr=0.2)), checkpoint)


@pytest.mark.parametrize("changes", [False, True])
def test_a_run_of_muon_that_is_older_than_an_option_goes_on(changes: bool) -> None:
    settings: dict[str, Any] = {"optimizer": Muon, "param_groups": MuonMatrices()}
    net, checkpoint = trained(**settings)
    state = checkpoint["optimizer_states"][0]
    for group in state["param_groups"]:
        del group["ns_dtype"]
    if changes:
        other = with_settings(net, **settings | {"optimizer": partial(Muon, ns_dtype="bfloat16")})
        optimizer, _ = resumed(other, checkpoint)
    else:
        optimizer, _ = net.build_optimizer()
        assert not regroup(checkpoint, optimizer, weights_of(net.net))
        check_optimizer(checkpoint, optimizer, None)
        optimizer.load_state_dict(state)
    found = {group["ns_dtype"] for group in optimizer.param_groups}
    assert found == {"bfloat16" if changes else None}


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


MUON = {"optimizer": partial(Muon, lr=0.1, adamw_lr=0.01), "param_groups": MuonMatrices()}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (2, 1, 1), (2, 8, 31), (16, 32)])
@pytest.mark.parametrize("settings", [{}, MUON], ids=["AdamW", "Muon"])
def test_a_moment_of_another_shape_than_its_weight_is_refused(
    settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    net, checkpoint = trained(**settings)
    optimizer, _ = net.build_optimizer()
    check_optimizer(checkpoint, optimizer, None)
    kept = checkpoint["optimizer_states"][0]["state"]
    name = "momentum" if settings else "exp_avg"
    number = next(n for n, state in kept.items() if name in state and state[name].ndim == 3)
    kept[number][name] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=f"its {name} of parameter {number} has shape"):
        check_optimizer(checkpoint, optimizer, None)


@pytest.mark.parametrize(
    "name", ["Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "ASGD", "NAdam", "RAdam"]
)
def test_what_torch_s_optimizers_keep_is_accepted(name: str) -> None:
    net, checkpoint = trained(optimizer=getattr(torch.optim, name))
    check_optimizer(checkpoint, net.build_optimizer()[0], None)


@pytest.mark.parametrize("method", ["adamw", "other", 3, None])
def test_a_method_that_is_not_that_of_the_settings_is_refused(method: object) -> None:
    net, checkpoint = trained(**MUON)
    checkpoint["optimizer_states"][0]["param_groups"][0]["method"] = method
    with pytest.raises(CheckpointError, match=r"param_groups.*method|method.*param_groups"):
        check_optimizer(checkpoint, net.build_optimizer()[0], None)


def test_moments_of_one_method_are_refused_for_the_other() -> None:
    net, checkpoint = trained(**MUON)
    state = checkpoint["optimizer_states"][0]["state"]
    state[0] = {name: torch.zeros(2, 8, 32) for name in ("exp_avg", "exp_avg_sq")}
    with pytest.raises(CheckpointError, match="parameter 0 has unexpected entries"):
        check_optimizer(checkpoint, net.build_optimizer()[0], None)


def test_changed_rates_of_both_methods_overrule_the_checkpoint_and_moments_stay() -> None:
    net, checkpoint = trained(**MUON, lr_scheduler=COSINE)
    before = copy.deepcopy(checkpoint["optimizer_states"][0]["state"])
    faster = MUON | {"optimizer": partial(Muon, lr=0.2, adamw_lr=0.04)}
    optimizer, _ = resumed(with_settings(net, **faster), checkpoint)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.2, 0.04, 0.04]
    torch.testing.assert_close(optimizer.state_dict()["state"], before)


class HeadByMuon(MuonMatrices):
    """The output layer is turned too."""

    def divide(self, weights: Sequence[Weight]) -> list[dict[str, Any]]:
        first, *others = super().divide(weights)
        [head] = [weight.parameter for weight in weights if weight.name == "head.weight"]
        for group in others:
            group["params"] = [p for p in group["params"] if p is not head]
        return [{**first, "params": [*first["params"], head]}, *others]


class InOneGroup(MuonMatrices):
    """Queries, keys and values are one matrix."""

    def divide(self, weights: Sequence[Weight]) -> list[dict[str, Any]]:
        first, second, *others = super().divide(weights)
        return [{**first, "params": [*second["params"], *first["params"]]}, *others]


def test_a_policy_that_keeps_each_weight_s_method_may_be_changed() -> None:
    net, checkpoint = trained(**MUON)
    other = with_settings(net, **MUON | {"param_groups": InOneGroup()})
    optimizer, _ = resumed(other, checkpoint)
    for parameter in optimizer.param_groups[0]["params"]:
        assert optimizer.state[parameter]["momentum"].shape == parameter.shape


@pytest.mark.parametrize(
    "settings",
    [
        MUON | {"param_groups": HeadByMuon()},
        {"optimizer": partial(AdamW, amsgrad=True)},
    ],
    ids=["policy", "amsgrad"],
)
def test_another_method_for_a_weight_is_refused(settings: dict[str, Any]) -> None:
    of = settings["optimizer"].func
    plain = MUON if of is Muon else {"optimizer": partial(of, lr=0.1)}
    net, checkpoint = trained(**plain)
    with pytest.raises(UsageError, match="train a weight by another method"):
        resumed(with_settings(net, **settings), checkpoint)


def test_from_another_optimizer_to_muon_is_refused() -> None:
    net, checkpoint = trained()
    with pytest.raises(UsageError, match="kind of optimizer"):
        resumed(with_settings(net, **MUON), checkpoint)


class Odd(AdamW):
    """A user's own, with a state of its own."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for kept in self.state.values():
            kept["odd"] = torch.zeros(99)
        return loss


Odd.__name__ = "Adam"


def test_a_user_s_own_optimizer_may_keep_anything_whatever_its_name() -> None:
    net, checkpoint = trained(optimizer=partial(Odd, lr=0.1))
    check_optimizer(checkpoint, net.build_optimizer()[0], None)
