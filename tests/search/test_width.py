"""The width of experts at which a token's FLOPs are those asked for."""

from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from makemoe.errors import UsageError
from makemoe.model.block import Architecture
from makemoe.model.experts import Experts, GatedExperts, MLPExperts
from makemoe.model.transformer import MoETransformer
from makemoe.search.width import width_at
from makemoe.training.work import work_of

SMALL: dict[str, Any] = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}


def flops(model: Architecture, experts: Any, width: int) -> int:
    """Counted on a model with weights."""
    own = replace(model, experts=partial(experts, hidden=width))
    return work_of(MoETransformer(**{f.name: getattr(own, f.name) for f in fields(own)})).flops


def architecture(**more: Any) -> Architecture:
    return MoETransformer(
        **({"vocab_size": 11, "num_experts": 4, "top_k": 2} | SMALL | more)
    ).architecture


@pytest.mark.parametrize("experts", [MLPExperts, GatedExperts])
@pytest.mark.parametrize("changes", [{}, {"num_experts": 8, "top_k": 3}, {"dense_layers": [0]}])
def test_no_other_width_is_nearer(experts: Any, changes: dict[str, Any]) -> None:
    target = flops(architecture(), experts, 37)
    model = architecture(**changes)
    width = width_at(model, experts, target)
    off = {w: abs(flops(model, experts, w) - target) for w in (width - 1, width, width + 1)}
    assert off[width] == min(off.values())


def test_a_model_keeps_its_own_width() -> None:
    assert width_at(architecture(), MLPExperts, flops(architecture(), MLPExperts, 24)) == 24


def test_twice_as_many_experts_per_token_are_half_as_wide() -> None:
    target = flops(architecture(), MLPExperts, 64)
    assert width_at(architecture(top_k=4), MLPExperts, target) == 32


def test_a_width_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"costs at least .* FLOPs per token, more than the 1,000"):
        width_at(architecture(), MLPExperts, 1000)


def test_experts_without_a_width_are_refused() -> None:
    class Fixed(Experts):
        def __init__(self, num_experts: int, n_embd: int, dropout: float) -> None:
            super().__init__()

        def forward(self, x: Tensor, *_: Any) -> Tensor:
            return torch.zeros_like(x)

    with pytest.raises(UsageError, match=r"no argument hidden: use sweep\.equal tokens"):
        width_at(architecture(), Fixed, 10**6)
