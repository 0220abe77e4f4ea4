"""Work is counted as arithmetic says, and as torch counts the products of a real step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import modern
import pytest
import torch
from modern import MODERN
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from makemoe.model.attention import CausalSelfAttention
from makemoe.model.experts import GatedExperts, MLPExperts
from makemoe.model.norm import RMSNorm
from makemoe.model.positions import RotaryPositions
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, Router, Routing
from makemoe.model.transformer import MoETransformer
from makemoe.training.work import Work, steps_to_spend, work_of

Build = Callable[..., MoETransformer]
V, T, D, E, K, L, HIDDEN = 11, 12, 16, 4, 2, 2, 64
ATTENTION = 3 * D * D + D * D
GATE, EXPERT = D * E, 2 * D * HIDDEN
HEAD = D * V
SCORES = 2 * D * (T + 1) / 2
"""Multiply-adds per layer: queries with keys, weights with values, of (T + 1) / 2 positions."""


class AngleRouter(Router):
    """A router of a user's own, whose weight is no linear layer."""

    def __init__(self, n_embd: int, num_experts: int, top_k: int) -> None:
        super().__init__(n_embd, num_experts, top_k)
        self.directions_ED = nn.Parameter(torch.randn(num_experts, n_embd))

    def forward(self, x_ND: Tensor) -> Routing:
        logits_NE = F.normalize(x_ND) @ F.normalize(self.directions_ED).T
        kept_NK, experts_NK = logits_NE.topk(self.top_k)
        return Routing(kept_NK.softmax(-1), experts_NK, logits_NE, logits_NE.softmax(-1))


CASES: dict[str, tuple[dict[str, Any], float]] = {
    "MoE layers": ({}, L * (ATTENTION + GATE + K * EXPERT)),
    "one expert per token": ({"top_k": 1}, L * (ATTENTION + GATE + EXPERT)),
    "all experts": ({"top_k": E}, L * (ATTENTION + GATE + E * EXPERT)),
    "a noisy router": ({"router": NoisyTopKRouter}, L * (ATTENTION + 2 * GATE + K * EXPERT)),
    "a biased router": ({"router": BiasedTopKRouter}, L * (ATTENTION + GATE + K * EXPERT)),
    "a router of a user's own": ({"router": AngleRouter}, L * (ATTENTION + GATE + K * EXPERT)),
    "gated experts": (
        {"experts": partial(GatedExperts, hidden=24)},
        L * (ATTENTION + GATE + K * 3 * D * 24),
    ),
    "shared experts": ({"shared_experts": 3}, L * (ATTENTION + GATE + (K + 3) * EXPERT)),
    "a dense layer": (
        {"dense_layers": [1], "dense_width": 3},
        L * ATTENTION + GATE + K * EXPERT + 3 * EXPERT,
    ),
    "dense layers alone": ({"dense_layers": [0, 1]}, L * (ATTENTION + EXPERT)),
    "tied embeddings": ({"tied_embeddings": True}, L * (ATTENTION + GATE + K * EXPERT)),
    "no biases, rotary positions, QK-norm": (
        {
            "norm": RMSNorm,
            "positions": RotaryPositions,
            "attention": partial(CausalSelfAttention, qk_norm=RMSNorm, bias=False),
            "experts": partial(MLPExperts, hidden=20, bias=False),
        },
        L * (ATTENTION + GATE + K * 2 * D * 20),
    ),
    "all newer parts at once": (
        MODERN,
        # A routed layer with one shared expert, and a dense one of two experts.
        L * ATTENTION + GATE + (K + 1 + 2) * 3 * D * modern.HIDDEN,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_flops_are_those_of_arithmetic(build: Build, case: str) -> None:
    options, in_blocks = CASES[case]
    forward = 2 * (in_blocks + HEAD + L * SCORES)
    assert work_of(build(**{"top_k": K} | options)).flops == 3 * forward


@pytest.mark.parametrize("case", CASES)
def test_flops_are_those_that_torch_counts_in_a_step(build: Build, case: str) -> None:
    """`loop` multiplies the chosen rows only, and attention that drops weights runs op by op.

    torch counts the masked scores too: T positions per query, where (T + 1) / 2 can be seen.
    """
    net = build(**{"top_k": K, "attn_dropout": 0.1, "dispatch": "loop"} | CASES[case][0])
    ids_BT = torch.randint(V, (3, T))
    with FlopCounterMode(display=False) as counter:
        logits_BTV, routings = net(ids_BT)
        # Every weight of the routing has a gradient, also of a single expert.
        (logits_BTV.square().sum() + sum(r.weights_NK.square().sum() for r in routings)).backward()
    masked = 3 * L * 2 * 2 * D * (T - (T + 1) / 2)
    assert counter.get_total_flops() == ids_BT.numel() * (work_of(net).flops + masked)


def test_the_work_of_the_tutorial_s_model_is_that_of_a_calculator() -> None:
    """8 blocks of width 128, 2 of 8 experts of width 512, contexts of 32 tokens, 65 symbols."""
    sizes = {"block_size": 32, "n_layer": 8, "n_head": 8, "n_embd": 128, "num_experts": 8}
    with torch.device("meta"):
        net = MoETransformer(65, top_k=2, router=NoisyTopKRouter, **sizes)
    #          qkv and proj   two gates    two experts     scores      head
    forward = (8 * (65_536 + 2 * 1_024 + 2 * 131_072 + 128 * 33) + 8_320) * 2
    assert work_of(net) == Work(*net.count_parameters(), 3 * forward)


def test_parameters_and_active_ones_are_those_of_the_model(build: Build) -> None:
    net = build(tied_embeddings=True, shared_experts=1)
    assert work_of(net)[:2] == net.count_parameters()


@pytest.mark.parametrize(
    ("flops", "steps"), [(4200, 10), (4409, 10), (4411, 11), (3991, 10), (1, 1)]
)
def test_steps_that_spend_flops_are_the_nearest_and_at_least_one(flops: int, steps: int) -> None:
    assert steps_to_spend(flops, Work(0, 0, 7), tokens_per_step=60) == steps


def test_equal_flops_are_the_same_steps_of_an_equal_model(build: Build) -> None:
    work, tokens = work_of(build()), 96
    assert steps_to_spend(1000 * tokens * work.flops, work, tokens) == 1000
    half = work._replace(flops=work.flops // 2)
    assert steps_to_spend(1000 * tokens * work.flops, half, tokens) == 2000
