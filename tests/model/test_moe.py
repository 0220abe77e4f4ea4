import copy
import math

import oracle
import pytest
import torch
from groups import Threads, share_of, together
from torch import Tensor, nn
from torch.func import functional_call

from makemoe.errors import UsageError
from makemoe.model.experts import MLPExperts
from makemoe.model.moe import MoELayer
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, TopKRouter

B, T, D, E = 3, 10, 8, 4
ROUTERS = [TopKRouter, NoisyTopKRouter]


def layer(top_k: int = 2, router: type[TopKRouter] = TopKRouter, **options: object) -> MoELayer:
    return MoELayer(router(D, E, top_k), MLPExperts(E, D, 0.0), **options)


@pytest.mark.parametrize("backend", ["auto", "loop", "padded", "grouped"])
@pytest.mark.parametrize("router", ROUTERS)
def test_one_expert_is_the_dense_layer(router: type[TopKRouter], backend: str) -> None:
    moe = MoELayer(router(D, 1, 1), MLPExperts(1, D, 0.0), backend=backend)
    dense = nn.Sequential(nn.Linear(D, 4 * D), nn.ReLU(), nn.Linear(4 * D, D))
    stacked = [moe.experts.fc_in, moe.experts.fc_out]
    for linear, one in zip((dense[0], dense[2]), stacked, strict=True):
        linear.weight.data, linear.bias.data = one.weight.data[0].t().clone(), one.bias.data[0]
    x, upstream = torch.randn(B, T, D, requires_grad=True), torch.randn(B, T, D)
    y, expected = moe(x)[0], dense(x)
    torch.testing.assert_close(y, expected)
    dx, *grads = torch.autograd.grad(y, [x, *moe.experts.parameters()], upstream)
    w_in, b_in, w_out, b_out = (g[0] for g in grads)
    want = torch.autograd.grad(expected, [x, *dense.parameters()], upstream)
    torch.testing.assert_close((dx, w_in.t(), b_in, w_out.t(), b_out), want)


@pytest.mark.parametrize("top_k", [1, 2, E])
def test_layer_equals_the_oracle(top_k: int) -> None:
    moe, x = layer(top_k), torch.randn(B, T, D)
    y, routing = moe(x)
    flat = x.flatten(0, 1)
    torch.testing.assert_close(routing, oracle.route(flat, moe.router))
    torch.testing.assert_close(y.flatten(0, 1), oracle.moe(flat, routing, moe.experts))


@pytest.mark.parametrize("order", ["position", "weight"])
@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 1.3, 100.0])
def test_training_drops_over_the_capacity_formula(factor: float, order: str) -> None:
    moe, x = layer(capacity_factor=factor, drop_order=order), torch.randn(B, T, D)
    y, routing = moe(x)
    capacity = max(1, math.floor(B * T * 2 * factor / E))
    assert routing.dropped_NK.tolist() == oracle.dropped(routing, capacity, order)
    assert routing.dropped_NK.any() == (factor < 100)
    torch.testing.assert_close(y.flatten(0, 1), oracle.moe(x.flatten(0, 1), routing, moe.experts))


@pytest.mark.parametrize("order", ["position", "weight"])
@pytest.mark.parametrize("processes", [2, 4])  # of 3 windows: uneven shares, and one of none
def test_several_processes_drop_what_one_does(order: str, processes: int) -> None:
    moe, x = layer(capacity_factor=0.7, drop_order=order), torch.randn(B, T, D)
    with torch.no_grad():
        moe.router.gate.bias[0] += 2  # the first expert is over capacity by itself
    y, routing = moe(x)

    def work(group: Threads) -> tuple[torch.Tensor, torch.Tensor]:
        of_process = copy.deepcopy(moe)
        of_process.group = group
        y, routing = of_process(share_of(group, x))
        return y, routing.dropped_NK

    parts, dropped = zip(*together(processes, work), strict=True)
    assert torch.equal(torch.cat(dropped), routing.dropped_NK)
    torch.testing.assert_close(torch.cat(parts), y)


def test_evaluation_asks_no_other_process() -> None:
    moe = layer(capacity_factor=0.7).eval()
    moe.group = Threads(0, 2)  # which would fail
    moe(torch.randn(B, T, D))


def test_evaluation_never_drops() -> None:
    moe, x = layer(capacity_factor=0.01).eval(), torch.randn(B, T, D)
    y, routing = moe(x)
    free = layer()
    free.load_state_dict(moe.state_dict())
    assert routing.dropped_NK is None
    torch.testing.assert_close(y, free(x)[0])


@pytest.mark.parametrize("router", ROUTERS)
def test_gate_learns_from_the_task_with_one_expert_per_token(router: type[TopKRouter]) -> None:
    moe = layer(1, router)
    moe(torch.randn(B, T, D))[0].square().sum().backward()
    assert moe.router.gate.weight.grad.abs().max() > 1e-4


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("backend", ["auto", "loop", "padded", "grouped"])
def test_idle_experts_get_a_gradient_of_zero(router: type[TopKRouter], backend: str) -> None:
    moe = layer(1, router, backend=backend)
    with torch.no_grad():
        moe.router.gate.bias[2] = 1e4
    moe(torch.randn(B, T, D))[0].sum().backward()
    for p in moe.experts.parameters():
        assert p.grad is not None
        assert (p.grad[[0, 1, 3]] == 0).all()
        assert (p.grad[2] != 0).any()
    assert all(p.grad is not None for p in moe.parameters())


@pytest.mark.parametrize("backend", ["auto", "loop", "padded"])
@pytest.mark.parametrize("router", [*ROUTERS, BiasedTopKRouter])
def test_gradients_are_exact_in_float64(router: type[TopKRouter], backend: str) -> None:
    experts = MLPExperts(3, 4, 0.0, hidden=5, activation="gelu")
    moe = MoELayer(router(4, 3, 2), experts, backend=backend).double().eval()
    names, parameters = zip(*moe.named_parameters(), strict=True)

    def output(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(moe, dict(zip(names, values, strict=True)), (x,))[0]

    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, *parameters))


def test_an_unknown_order_of_dropping_is_refused() -> None:
    with pytest.raises(UsageError, match="drop_order 'Position': use position or weight"):
        layer(drop_order="Position")


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_capacity_factor_must_be_positive(factor: float) -> None:
    with pytest.raises(UsageError, match=f"capacity_factor {factor}"):
        layer(capacity_factor=factor)
