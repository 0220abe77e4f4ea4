from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from makemoe.errors import UsageError
from makemoe.model import footprint as footprints
from makemoe.model.experts import Experts, GroupedLinear, MLPExperts, StackedLinear
from makemoe.model.footprint import footprint
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, Router, Routing
from makemoe.model.transformer import MoETransformer


class Angles(Router):
    """A router of a user's, with weights drawn, read and kept in ways of its own."""

    def __init__(self, n_embd: int, num_experts: int, top_k: int, bonus: int = 0) -> None:
        super().__init__(n_embd, num_experts, top_k)
        self.directions_ED = nn.Parameter(torch.randn(num_experts, n_embd))
        self.extra = nn.ParameterList(torch.zeros(bonus) for _ in range(2))
        self.register_buffer("seen_E", torch.ones(num_experts))

    def forward(self, x_ND: Tensor) -> Routing:
        raise NotImplementedError


class OneByOne(Experts):
    """Experts of a user's, which are built one by one."""

    def __init__(self, num_experts: int, n_embd: int, dropout: float, hidden: int = 3) -> None:
        super().__init__(num_experts, n_embd, dropout)
        self.each = nn.ModuleList(StackedLinear(1, n_embd, hidden) for _ in range(num_experts))

    def forward(self, x: Tensor, linear: GroupedLinear) -> Tensor:
        raise NotImplementedError

    def residual_outputs(self) -> list[StackedLinear]:
        return []


class NotOnMeta(Experts):
    """Experts that look at their weights while they are built."""

    def __init__(self, num_experts: int, n_embd: int, dropout: float) -> None:
        super().__init__(num_experts, n_embd, dropout)
        assert torch.rand(3).max().item() < 1
        self.fc = StackedLinear(num_experts, n_embd, n_embd)

    def forward(self, x: Tensor, linear: GroupedLinear) -> Tensor:
        raise NotImplementedError

    def residual_outputs(self) -> list[StackedLinear]:
        return []


MODELS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one of all": {"n_layer": 1, "n_head": 1, "n_embd": 1, "num_experts": 1, "top_k": 1},
    "noisy": {"router": NoisyTopKRouter, "n_layer": 3, "block_size": 7, "dropout": 0.1},
    "biased": {"router": partial(BiasedTopKRouter, score="softmax"), "num_experts": 5},
    "wide experts": {"experts": partial(MLPExperts, hidden=37, activation="gelu")},
    "no bias": {"experts": partial(MLPExperts, bias=False)},
    "no bias at the ends": {"head_bias": False, "router": partial(BiasedTopKRouter, bias=False)},
    "tied, no bias": {"tied_embeddings": True, "head_bias": False, "n_layer": 1},
    "a user's": {"router": partial(Angles, bonus=5), "experts": OneByOne, "num_experts": 6},
}


@pytest.mark.parametrize("case", MODELS)
def test_parameters_and_buffers_are_those_of_the_model_when_it_is_built(case: str) -> None:
    model = MoETransformer(**{"vocab_size": 11, "n_embd": 8, "n_layer": 2} | MODELS[case])
    size = footprint(model.architecture)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.buffers == sum(b.numel() for b in model.buffers())


@pytest.mark.parametrize("router", [NoisyTopKRouter, BiasedTopKRouter, Angles])
def test_parameters_of_many_experts_are_exact(
    router: type[Router], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MoETransformer(5, n_embd=8, num_experts=20, top_k=7, router=router, experts=OneByOne)
    whole = footprint(model.architecture)
    monkeypatch.setattr(footprints, "MANY_EXPERTS", 4)
    assert footprint(model.architecture)[:3] == whole[:3]


def test_a_class_that_cannot_be_built_without_memory_counts_as_nothing() -> None:
    model = MoETransformer(5, n_embd=8, experts=NotOnMeta)
    without = sum(p.numel() for name, p in model.named_parameters() if ".moe." not in name)
    assert footprint(model.architecture).parameters == without


def test_no_random_numbers_are_drawn() -> None:
    before = torch.get_rng_state()
    model = MoETransformer(5, n_embd=8, router=Angles)
    built = torch.get_rng_state()
    footprint(model.architecture)
    assert torch.equal(torch.get_rng_state(), built)
    assert not torch.equal(before, built)


def test_parts_that_do_not_go_together_are_refused_as_when_they_are_built() -> None:
    with pytest.raises(UsageError, match="top_k 9 must be between 1 and num_experts 8"):
        MoETransformer(5, top_k=9)
    with pytest.raises(UsageError, match="n_embd 16 is not divisible by n_head 99: lower n_head"):
        MoETransformer(5, n_embd=16, n_head=99)
