"""What is described is what `held` reads back; what cannot be described says why."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from makemoe.checkpoint.describe import Undescribed, described
from makemoe.checkpoint.held import Reader
from makemoe.data.tokenizer import CharTokenizer
from makemoe.model.attention import AttentionFactory, CausalSelfAttention
from makemoe.model.experts import ExpertsFactory, MLPExperts
from makemoe.model.init import GPT2Normal, Initializer, ZeroOutputs
from makemoe.model.norm import RMSNorm
from makemoe.model.router import RouterFactory, TopKRouter
from makemoe.training.balance import Balancer, BiasBalance


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (TopKRouter, RouterFactory),
        (partial(MLPExperts, hidden=7, activation="silu"), ExpertsFactory),
        (BiasBalance(0.5, 64), Balancer),
        (GPT2Normal(0.5), GPT2Normal),
    ],
)
def test_what_is_described_is_built_again_from_its_description(value: Any, annotation: Any) -> None:
    part = Reader("my.ckpt").value(described(value), annotation, "setting")
    factory = part.factory()
    if isinstance(value, type):
        assert (factory.func, factory.keywords) == (value, {})
    elif isinstance(value, partial):
        assert (factory.func, factory.keywords) == (value.func, value.keywords)
    else:
        assert type(factory()) is type(value)
        assert vars(factory()) == vars(value)


def test_parts_within_parts_are_described_too() -> None:
    attention = partial(CausalSelfAttention, qk_norm=partial(RMSNorm, eps=0.5))
    again = Reader("my.ckpt").value(described(attention), AttentionFactory, "setting").factory()
    norm = again(8, 2, 0.0, 0.0).norm_k
    assert (type(norm), norm.eps) == (RMSNorm, 0.5)
    zero = ZeroOutputs(GPT2Normal(0.5))
    again = Reader("my.ckpt").value(described(zero), Initializer, "setting").factory()
    assert again().scheme.std == 0.5


def test_plain_values_are_taken_as_python_s_own() -> None:
    given = [None, True, 3, 0.5, "auto", (1, 2), np.float64(0.25), np.str_("a")]
    taken = described(given)
    assert taken == [None, True, 3, 0.5, "auto", [1, 2], 0.25, "a"]
    assert [type(value) for value in taken[-2:]] == [float, str]


def test_an_optimizer_of_torch_has_the_path_that_a_checkpoint_may_name() -> None:
    assert described(torch.optim.AdamW) == {"class_path": "torch.optim.AdamW"}
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    path = "torch.optim.lr_scheduler.ReduceLROnPlateau"
    assert described(plateau) == {"class_path": path}


class Doubling(Balancer):
    """Keeps another value than it was given."""

    def __init__(self, rate: float) -> None:
        self.rate = 2 * rate

    def setting(self) -> dict[str, float]:
        return {"rate": self.rate}


class Hiding(Doubling):
    """Keeps its argument under another name."""

    def __init__(self, strength: float) -> None:
        super().__init__(strength)


class Local:
    class Router(TopKRouter):
        pass


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda *sizes: TopKRouter(*sizes), "is a function"),
        (torch.relu, "is a function, .*relu"),
        (partial(described), "a partial of a function"),
        (partial(TopKRouter, 8), "arguments that have no names"),
        (partial(MLPExperts, activation=torch.relu), "argument activation that is a function"),
        (Doubling(0.5), "Doubling, which does not keep its arguments"),
        (Hiding(0.5), "Hiding, which does not keep its arguments"),
        (Local.Router, "which another program cannot import"),
        ([TopKRouter, {"a": 1}], "dict"),
        (CharTokenizer("ab").encode, "is a function"),
        (torch.zeros(2), "Tensor"),
    ],
)
def test_what_cannot_be_described_says_why(value: Any, words: str) -> None:
    with pytest.raises(Undescribed, match=words):
        described(value)
