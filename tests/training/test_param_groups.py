"""The optimizer's groups: which weights are in which, and what a step does to them."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from makemoe.errors import UsageError
from makemoe.model.attention import CausalSelfAttention
from makemoe.model.experts import GatedExperts
from makemoe.model.norm import RMSNorm
from makemoe.model.positions import RotaryPositions
from makemoe.model.router import NoisyTopKRouter, TopKRouter
from makemoe.training.module import LanguageModel
from makemoe.training.muon import Muon, MuonMatrices
from makemoe.training.param_groups import DecayMatrices, ParamGroups, Weight, weights_of

LR, DECAY, EPS = 0.1, 0.5, 1e-8
DECAYING = partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY, eps=EPS)


def model(**settings: Any) -> LanguageModel:
    sizes = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "num_experts": 2}
    return LanguageModel(vocab_size=5, **sizes | {"router": NoisyTopKRouter} | settings)


def test_by_default_all_weights_are_in_one_group_as_the_model_lists_them() -> None:
    built = model()
    plain = torch.optim.AdamW(built.net.parameters(), lr=1e-3)
    optimizer, schedule = built.build_optimizer()
    assert schedule is None
    assert optimizer.state_dict() == plain.state_dict()
    [group], [own] = optimizer.param_groups, plain.param_groups
    assert [*map(id, group["params"])] == [*map(id, own["params"])]


def test_matrices_are_linear_layers_gates_and_experts() -> None:
    matrices = {weight.name for weight in weights_of(model().net) if weight.is_matrix}
    assert matrices == {
        "blocks.0.attention.qkv.weight",
        "blocks.0.attention.proj.weight",
        "blocks.0.moe.router.gate.weight",
        "blocks.0.moe.router.noise.weight",
        "blocks.0.moe.experts.fc_in.weight",
        "blocks.0.moe.experts.fc_out.weight",
        "head.weight",
    }


def test_a_weight_that_is_an_embedding_too_is_no_matrix_and_is_listed_once() -> None:
    net = model().net
    net.head.weight = net.token_embedding.weight
    held = [weight for weight in weights_of(net) if weight.parameter is net.head.weight]
    assert [weight.name for weight in held] == ["token_embedding.weight"]
    assert not held[0].is_matrix


def test_a_step_decays_matrices_only() -> None:
    built = model(optimizer=DECAYING, param_groups=DecayMatrices())
    optimizer, _ = built.build_optimizer()
    before = {name: p.detach().numpy().astype(np.float64) for name, p in named(built)}
    before = {name: value.copy() for name, value in before.items()}
    built.net(torch.arange(5)[None])[0].square().mean().backward()
    optimizer.step()
    for weight in weights_of(built.net):
        value, gradient = before[weight.name], weight.parameter.grad
        assert gradient is not None
        # The first step of AdamW: corrected, the moments are the gradient and its square.
        g = gradient.numpy().astype(np.float64)
        kept = 1 - LR * DECAY if weight.is_matrix else 1.0
        expected = value * kept - LR * g / (np.abs(g) + EPS)
        after = weight.parameter.detach().numpy()
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6, err_msg=weight.name)


def named(built: LanguageModel) -> Iterable[tuple[str, nn.Parameter]]:
    return built.net.named_parameters()


class AngleRouter(TopKRouter):
    """Has a matrix that is no linear layer's."""

    def __init__(self, n_embd: int, num_experts: int, top_k: int) -> None:
        super().__init__(n_embd, num_experts, top_k)
        self.directions_ED = nn.Parameter(torch.randn(num_experts, n_embd))


MODERN: dict[str, Any] = {
    "n_layer": 2,
    "dense_layers": [1],
    "shared_experts": 1,
    "norm": RMSNorm,
    "positions": RotaryPositions,
    "experts": GatedExperts,
    "attention": partial(CausalSelfAttention, qk_norm=RMSNorm, bias=False),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("router", [NoisyTopKRouter, AngleRouter])
def test_muon_gets_the_matrices_within_blocks_and_adamw_the_rest(tied: bool, router: Any) -> None:
    built = model(**MODERN | {"router": router, "tied_embeddings": tied})
    weights = weights_of(built.net)
    names = {id(weight.parameter): weight.name for weight in weights}
    *turned, matrices, rest = (
        ({names[id(p)] for p in group.pop("params")}, group)
        for group in MuonMatrices().divide(weights)
    )
    stacks = [f"experts.fc_{side}.weight" for side in ("gate", "in", "out")]
    places = ("0.moe.routed.", "0.moe.shared.", "1.moe.")
    single = {f"blocks.{place}{stack}" for place in places for stack in stacks}
    single |= {f"blocks.{layer}.attention.proj.weight" for layer in range(2)}
    three = {f"blocks.{layer}.attention.qkv.weight" for layer in range(2)}
    assert turned == [
        (single, {"method": "muon", "parts": 1}),
        (three, {"method": "muon", "parts": 3}),
    ]
    others, options = matrices
    assert options == {"method": "adamw"}
    routed = "blocks.0.moe.routed.router."
    inside = "directions_ED" if router is AngleRouter else "noise.weight"
    assert others == {f"{routed}gate.weight", f"{routed}{inside}"} | {"head.weight"} - {
        "head.weight" if tied else ""
    }
    vectors, options = rest
    assert options == {"method": "adamw", "weight_decay": 0.0}
    assert vectors == set(names.values()) - single - three - others


@pytest.mark.parametrize("tied", [False, True])
def test_decay_is_on_all_matrices_of_modern_parts(tied: bool) -> None:
    weights = weights_of(model(**MODERN | {"router": AngleRouter, "tied_embeddings": tied}).net)
    decaying, _ = DecayMatrices().divide(weights)
    ids = {id(p) for p in decaying["params"]}
    kept = {weight.name.rpartition(".")[0] for weight in weights if id(weight.parameter) not in ids}
    gains = {f"blocks.{layer}.norm_{n}" for layer in range(2) for n in (1, 2)}
    gains |= {f"blocks.{layer}.attention.norm_{side}" for layer in range(2) for side in "qk"}
    biases = {"head", "blocks.0.moe.routed.router.gate"}
    assert kept == gains | biases | {"norm", "token_embedding"}


def muon(**settings: Any) -> Any:
    return partial(Muon, **settings)


def test_a_schedule_scales_the_rates_of_both_methods() -> None:
    half = partial(torch.optim.lr_scheduler.ConstantLR, factor=0.5)
    both = muon(lr=0.2, adamw_lr=0.04)
    built = model(optimizer=both, param_groups=MuonMatrices(), lr_scheduler=half)
    optimizer, _ = built.build_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.02, 0.02]


def test_a_plateau_lowers_the_rates_of_both_methods() -> None:
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0)
    both = muon(lr=0.2, adamw_lr=0.04)
    built = model(optimizer=both, param_groups=MuonMatrices(), lr_scheduler=plateau)
    optimizer, schedule = built.build_optimizer()
    assert isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
    for loss in (3.0, 3.0):
        schedule.step(loss)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.02, 0.02]


@pytest.mark.parametrize("policy", [None, DecayMatrices()])
def test_muon_without_its_policy_names_the_policy(policy: Any) -> None:
    words = r"^--model\.optimizer: Muon is .* --model\.param_groups MuonMat"
    with pytest.raises(UsageError, match=words):
        model(optimizer=Muon, param_groups=policy).build_optimizer()


@pytest.mark.parametrize("other", [torch.optim.AdamW, torch.optim.SGD])
def test_the_policy_with_another_optimizer_names_both(other: Any) -> None:
    words = (
        rf"MuonMatrices: the optimizer {other.__name__} has no method: use --model.optimizer Muon"
    )
    with pytest.raises(UsageError, match=words):
        model(optimizer=other, param_groups=MuonMatrices()).build_optimizer()


def test_muon_over_a_model_without_matrices_is_refused() -> None:
    net = nn.Sequential(nn.Embedding(5, 8), nn.LayerNorm(8), NoisyTopKRouter(8, 2, 1))
    with pytest.raises(UsageError, match="MuonMatrices: the model has no matrices"):
        MuonMatrices().divide(weights_of(net))


def test_a_value_that_muon_refuses_names_the_option() -> None:
    refused = model(optimizer=muon(ns_steps=9), param_groups=MuonMatrices())
    with pytest.raises(UsageError, match=r"^--model\.optimizer: ns_steps 9 must be"):
        refused.build_optimizer()


def test_a_function_that_builds_muon_is_described_by_its_settings() -> None:
    built = model(
        optimizer=lambda params: Muon(params, lr=0.3, adamw_lr=0.7), param_groups=MuonMatrices()
    )
    held = built.hparams["optimizer"]
    assert held["class_path"] == "makemoe.training.muon.Muon"
    assert (held["init_args"]["lr"], held["init_args"]["adamw_lr"]) == (0.3, 0.7)


class Forgetful(ParamGroups):
    """Leaves out the output layer."""

    def divide(self, weights: Sequence[Weight]) -> list[dict[str, Any]]:
        return [{"params": [w.parameter for w in weights if not w.name.startswith("head")]}]


class Marked(ParamGroups):
    """Marks matrices for an optimizer that treats them in another way."""

    def divide(self, weights: Sequence[Weight]) -> list[dict[str, Any]]:
        matrices = [w.parameter for w in weights if w.is_matrix]
        others = [w.parameter for w in weights if not w.is_matrix]
        return [{"params": matrices, "orthogonal": True}, {"params": others}]


class TwoRules(torch.optim.SGD):
    """An optimizer with a rule for marked groups."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.defaults["orthogonal"] = False
        for group in self.param_groups:
            group.setdefault("orthogonal", False)


def test_a_weight_in_no_group_is_refused() -> None:
    with pytest.raises(UsageError, match=r"param_groups Forgetful: head\.weight is in 0 groups"):
        model(param_groups=Forgetful()).build_optimizer()


def test_an_option_that_the_optimizer_does_not_have_is_refused() -> None:
    without = model(optimizer=torch.optim.Rprop, param_groups=DecayMatrices())
    with pytest.raises(UsageError, match="optimizer Rprop has no weight_decay"):
        without.build_optimizer()
    with pytest.raises(UsageError, match="optimizer AdamW has no orthogonal"):
        model(param_groups=Marked()).build_optimizer()


def test_a_policy_may_mark_groups_for_an_optimizer_that_knows_the_mark() -> None:
    optimizer, _ = model(optimizer=TwoRules, param_groups=Marked()).build_optimizer()
    assert [group["orthogonal"] for group in optimizer.param_groups] == [True, False]


def test_a_function_gets_the_parameters_themselves_if_there_is_one_group() -> None:
    chosen = model(optimizer=lambda params: torch.optim.SGD([p for p in params if p.ndim > 1]))
    optimizer, _ = chosen.build_optimizer()
    assert all(p.ndim > 1 for p in optimizer.param_groups[0]["params"])
