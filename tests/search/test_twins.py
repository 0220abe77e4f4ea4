"""Twins against closed forms."""

from functools import partial
from typing import Any

import pytest
from torch import Tensor

from makemoe.errors import UsageError
from makemoe.model.experts import Experts, GatedExperts, GroupedLinear, MLPExperts, StackedLinear
from makemoe.model.transformer import MoETransformer
from makemoe.search.twins import twin_of, twin_words, without_router

D, L, E, K, F = 24, 3, 6, 2, 40
SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "block_size": 8,
    "n_layer": L,
    "n_head": 2,
    "n_embd": D,
    "num_experts": E,
    "top_k": K,
}


class FixedExperts(Experts):
    """Experts whose width cannot be chosen."""

    def __init__(self, num_experts: int, n_embd: int, dropout: float) -> None:
        super().__init__(num_experts, n_embd, dropout)
        self.linear = StackedLinear(num_experts, n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, linear: GroupedLinear) -> Tensor:
        return linear(x, self.linear)

    def residual_outputs(self) -> list[StackedLinear]:
        return [self.linear]


def gate() -> int:
    """Weights of a router, which a twin gives to its expert."""
    return D * E


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("size", ["active", "total"])
def test_a_twin_is_one_expert_as_wide_as_those_of_a_token_and_the_gate(
    size: str, shared: int
) -> None:
    experts = partial(MLPExperts, hidden=F, bias=False)
    net = MoETransformer(**SIZES, experts=experts, shared_experts=shared)
    chosen = (K if size == "active" else E) + shared
    # An expert has 2 D weights per unit of width.
    exact = chosen * F + gate() / (2 * D)
    target = getattr(net.count_parameters(), size)
    twin = twin_of(net.architecture, experts, target)
    assert twin.experts == 1
    assert twin.hidden == round(exact)
    dense = MoETransformer(
        **SIZES, experts=partial(experts, hidden=twin.hidden), dense_layers=range(L)
    )
    assert dense.count_parameters() == (twin.parameters, twin.parameters)
    assert abs(twin.parameters - target) <= L * D


def test_a_twin_of_gated_experts_with_biases_is_the_nearest() -> None:
    experts = partial(GatedExperts, hidden=F, bias=True)
    net = MoETransformer(**SIZES, experts=experts)
    target = net.count_parameters().active
    twin = twin_of(net.architecture, experts, target)
    per_width = L * (3 * D + 2)
    assert abs(twin.parameters - target) <= per_width / 2


def test_layers_that_were_dense_take_the_width_of_the_others() -> None:
    experts = partial(MLPExperts, hidden=F, bias=False)
    net = MoETransformer(**SIZES, experts=experts, dense_layers=[0], dense_width=5)
    target = net.count_parameters().active
    twin = twin_of(net.architecture, experts, target)
    assert twin.hidden == round((5 * F + (L - 1) * (K * F + gate() / (2 * D))) / L)
    assert abs(twin.parameters - target) <= L * D


def test_experts_without_a_width_are_added_up() -> None:
    net = MoETransformer(**SIZES, experts=FixedExperts)
    twin = twin_of(net.architecture, FixedExperts, net.count_parameters().total)
    assert (twin.experts, twin.hidden) == (E, None)
    assert twin_words(twin, L, {"class_path": "FixedExperts"})[:2] == [
        "--model.dense_layers=[0, 1, 2]",
        "--model.dense_width=6",
    ]


def test_a_size_that_no_dense_model_has_is_refused() -> None:
    net = MoETransformer(**SIZES)
    with pytest.raises(UsageError, match="narrowest"):
        twin_of(net.architecture, MLPExperts, 10)


def test_models_that_differ_in_routers_and_widths_alone_have_the_same_rest() -> None:
    def model(**changes: Any) -> dict[str, Any]:
        experts = {"class_path": "MLPExperts", "init_args": {"hidden": F, "bias": True}}
        return {"n_embd": D, "num_experts": E, "router": "A", "experts": experts} | changes

    wide = {"class_path": "MLPExperts", "init_args": {"hidden": 9, "bias": True}}
    assert without_router(model()) == without_router(model(num_experts=2, router="B"))
    assert without_router(model()) == without_router(model(experts=wide))
    assert without_router(model()) != without_router(model(n_embd=8))
    assert model()["experts"]["init_args"]["hidden"] == F
