"""Every two parts of a model work together, with every router, backend and capacity.

Models in which each value of an option meets each value of every other option.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any, get_args

import formulas
import oracle
import pytest
import torch
from covering import covering, pairs_of
from modern import activation_of
from torch import Tensor

from makemoe.model.attention import CausalSelfAttention
from makemoe.model.backends import BackendName
from makemoe.model.experts import GatedExperts, MLPExperts
from makemoe.model.generate import Sampler, generate
from makemoe.model.norm import LayerNorm, RMSNorm
from makemoe.model.positions import LearnedPositions, RotaryPositions
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, TopKRouter
from makemoe.model.transformer import MoETransformer

V, T = 11, 12
BASE = 10_000.0
Build = Callable[..., MoETransformer]

# Widths are multiples of 4, which `grouped` and `rounded` need.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "norm": {"LayerNorm": {"norm": LayerNorm}, "RMSNorm": {"norm": RMSNorm}},
    "positions": {
        "learned": {"positions": LearnedPositions},
        "rotary": {"positions": RotaryPositions},
    },
    "attention": {
        "plain": {},
        "no bias": {"attention": partial(CausalSelfAttention, bias=False)},
        "QK-norm": {"attention": partial(CausalSelfAttention, qk_norm=RMSNorm, bias=False)},
        "shifted": {"attention": partial(CausalSelfAttention, qk_norm=LayerNorm)},
    },
    "experts": {
        "ReLU": {"experts": partial(MLPExperts, hidden=24)},
        "squared ReLU": {"experts": partial(MLPExperts, activation="squared_relu", bias=False)},
        "fine": {"experts": partial(MLPExperts, hidden=4, activation="gelu"), "num_experts": 16},
        "SwiGLU": {"experts": partial(GatedExperts, hidden=8)},
        "GEGLU": {"experts": partial(GatedExperts, activation="gelu", bias=True)},
    },
    "shared": {"none": {}, "one": {"shared_experts": 1}, "two": {"shared_experts": 2}},
    "dense": {
        "none": {},
        "first": {"dense_layers": [0]},
        "wide": {"dense_layers": [1], "dense_width": 2},
    },
    "embeddings": {"own": {}, "tied": {"tied_embeddings": True}},
    "router": {
        "TopK": {"router": TopKRouter},
        "noisy": {"router": NoisyTopKRouter},
        "sigmoid": {"router": BiasedTopKRouter},
        "softmax": {"router": partial(BiasedTopKRouter, score="softmax")},
    },
    "chosen": {"one": {"top_k": 1}, "two": {"top_k": 2}},
    "capacity": {
        "none": {},
        "by position": {"capacity_factor": 1.0},
        "by weight": {"capacity_factor": 0.5, "drop_order": "weight"},
    },
    "dispatch": {name: {"dispatch": name} for name in get_args(BackendName)},
    "dropout": {
        "none": {},
        "embeddings": {"embd_dropout": 0.3},
        "attention weights": {"attn_dropout": 0.3},
        "attention": {"dropout": 0.3, "attn_dropout": 0.0, "expert_dropout": 0.0},
        "experts": {"expert_dropout": 0.3},
    },
}  # fmt: skip
MODELS = covering(OPTIONS)
each_model = pytest.mark.parametrize("case", MODELS, ids=lambda case: "-".join(case.values()))


def parts_of(case: dict[str, str]) -> dict[str, Any]:
    """The arguments of a model."""
    return {k: v for name, value in case.items() for k, v in OPTIONS[name][value].items()}


def model_of(build: Build, case: dict[str, str], **other: Any) -> MoETransformer:
    """A model whose biases of selection, if it has any, are not zero."""
    torch.manual_seed(5)
    model = build(**parts_of(case) | other)
    for router in model.routers().values():
        if isinstance(router, BiasedTopKRouter):
            router.bias_E.uniform_(-0.3, 0.3)
    return model


def test_every_two_values_of_two_options_meet() -> None:
    met = set().union(*(pairs_of(case) for case in MODELS))
    for one, other in combinations(OPTIONS, 2):
        for a in OPTIONS[one]:
            for b in OPTIONS[other]:
                assert frozenset(((one, a), (other, b))) in met
    assert len(MODELS) < 50


@each_model
def test_logits_are_those_of_the_formulas(build: Build, case: dict[str, str]) -> None:
    model, ids = model_of(build, case).eval(), torch.randint(V, (T,))
    expected = formulas.logits(
        ids.tolist(),
        formulas.weights_of(model),
        n_head=2,
        top_k=model.top_k,
        activation=activation_of(parts_of(case)),
        base=BASE if isinstance(model.position_embedding, RotaryPositions) else None,
        score=case["router"] if case["router"] in formulas.SCORES else None,
    )
    logits = model(ids[None])[0][0]
    torch.testing.assert_close(logits.double(), torch.tensor(expected), rtol=1e-4, atol=1e-4)


@each_model
def test_sampling_with_a_cache_equals_sampling_without(build: Build, case: dict[str, str]) -> None:
    model = model_of(build, case).eval()
    prompts, count = [[1, 2, 3], [4]], T + T // 2
    cached = generate(model, prompts, count, Sampler([1, 2], temperature=0.7))
    for prompt, seed, new in zip(prompts, (1, 2), cached, strict=True):
        assert new == oracle.generate(model, prompt, count, oracle.sampler(seed, 0.7))


@each_model
def test_a_training_step_is_that_of_the_simplest_backend(
    build: Build, case: dict[str, str]
) -> None:
    def step(model: MoETransformer) -> list[Tensor]:
        torch.manual_seed(3)
        logits, _ = model(torch.randint(V, (3, T)))
        return [logits, *torch.autograd.grad(logits.logsumexp(-1).sum(), list(model.parameters()))]

    fast, naive = (step(model_of(build, case, **other)) for other in ({}, {"dispatch": "loop"}))
    torch.testing.assert_close(fast, naive, rtol=1e-4, atol=1e-4)
