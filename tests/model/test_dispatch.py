"""Tokens reach their experts and come back weighted, whatever computes the experts."""

import itertools
from collections.abc import Iterator

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import assigned, on_device, random_routing
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F

from makemoe.model import dispatch as dispatching
from makemoe.model.backends import Auto, Backend, Grouped, Groups, Loop, Padded, Rounded
from makemoe.model.dispatch import dispatch, drop_over_capacity
from makemoe.model.experts import Experts, MLPExperts
from makemoe.model.moe import MoELayer
from makemoe.model.router import Routing, TopKRouter

D, HIDDEN = 8, 24  # rows of a multiple of 16 bytes in bf16 too
BACKENDS = [Loop(), Padded(), Rounded(), Grouped(), Auto()]
IN_64 = [Loop(), Padded(), Auto()]  # grouped_mm has no float64
EACH = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)

EDGES = {
    "idle experts": assigned([[0, 2], [2, 0], [0, 2]]),
    "last expert idle": assigned([[0, 2], [2, 1], [0, 1]]),
    "one expert with every token": assigned([[3]] * 40),
    "one token": assigned([[2]]),
    "every expert chosen": assigned([[0, 3, 1, 2], [1, 0, 2, 3], [3, 2, 1, 0]]),
    "some dropped": assigned([[0, 1]] * 3, [[False, True], [True, False], [False, False]]),
    "a token dropped whole": assigned([[0, 1]] * 2, [[True, True], [False, False]]),
    "all but one dropped": assigned([[0, 1]] * 2, [[True, True], [True, False]]),
}


@pytest.fixture
def keeping_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: rows of dropped assignments are not left out."""
    monkeypatch.setattr(dispatching, "cuts_dropped", lambda x_ND: False)


def check(
    backend: Backend,
    routing: Routing,
    E: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    train: bool = True,
    capacity: int | None = None,
    **kind: object,
) -> None:
    """Outputs and every gradient, against the oracle."""
    N = len(routing.experts_NK)
    experts = MLPExperts(E, D, 0.0, hidden=HIDDEN, **kind).to(device, dtype).train(train)
    x = torch.randn(N, D, dtype=dtype, device=device, requires_grad=True)
    routing = on_device(routing, device)
    weights = routing.weights_NK.to(dtype).requires_grad_()
    routing = routing._replace(weights_NK=weights)
    leaves, upstream = [x, weights, *experts.parameters()], torch.randn_like(x)

    def both(y: Tensor) -> tuple[Tensor, ...]:
        return y, *torch.autograd.grad(y, leaves, upstream, materialize_grads=True)

    fast = both(dispatch(x, routing, experts, backend, capacity))
    naive = both(oracle.moe(x, routing, experts))
    rounding = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(fast, naive, **rounding)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [*itertools.product(BACKENDS, [torch.float32]), *itertools.product(IN_64, [torch.float64])],
)
def test_equals_the_oracle_at_the_edges(
    backend: Backend, edge: str, train: bool, dtype: torch.dtype, device: str
) -> None:
    check(backend, EDGES[edge], 4, dtype, device, train)


@EACH
@settings(deadline=None, max_examples=12)
@given(st.data())
def test_equals_the_oracle_for_any_routing(
    backend: Backend, device: str, data: st.DataObject
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**32), "seed"))
    E, N = data.draw(st.integers(1, 9), "E"), data.draw(st.integers(1, 40), "N")
    K = data.draw(st.integers(1, E), "K")
    routing = random_routing(N, E, K, dropped=data.draw(st.sampled_from([0.0, 0.3, 0.9])))
    train, bias = data.draw(st.booleans(), "train"), data.draw(st.booleans(), "bias")
    check(backend, routing, E, device=device, train=train, activation="gelu", bias=bias)


@EACH
@pytest.mark.parametrize("order", ["position", "weight"])
@pytest.mark.parametrize("capacity", [1, 3, 8, 20, 40])
@pytest.mark.usefixtures("keeping_dropped")
def test_dropped_rows_that_are_kept_in_change_nothing(
    backend: Backend, order: str, capacity: int
) -> None:
    routing = drop_over_capacity(random_routing(24, 4, 2), capacity, order)
    check(backend, routing, 4, capacity=capacity)


@EACH
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.usefixtures("keeping_dropped")
def test_dropped_rows_that_are_kept_in_change_nothing_at_the_edges(
    backend: Backend, edge: str
) -> None:
    check(backend, EDGES[edge], 4)


@EACH
@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_bfloat16_autocast_agrees_to_its_rounding(
    backend: Backend, dropped: float, device: str
) -> None:
    routing = on_device(random_routing(64, 4, 2, dropped=dropped), device)
    experts, computed_in = MLPExperts(4, D, 0.0, hidden=HIDDEN).to(device), []
    # Smooth: rounding flips the gradient of relu.
    experts.activation = lambda h: computed_in.append(h.dtype) or F.gelu(h)
    x = torch.randn(64, D, device=device, requires_grad=True)
    leaves, upstream = [x, *experts.parameters()], torch.randn_like(x)
    naive = oracle.moe(x, routing, experts)
    computed_in.clear()
    with torch.autocast(device, torch.bfloat16):
        y = dispatch(x, routing, experts, backend)
    assert (computed_in, y.dtype) == ([torch.bfloat16], torch.float32)
    for fast, exact in zip(
        (y, *torch.autograd.grad(y, leaves, upstream)),
        (naive, *torch.autograd.grad(naive, leaves, upstream)),
        strict=True,
    ):
        assert (fast - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("backend", IN_64, ids=lambda backend: backend.name)
@pytest.mark.parametrize("width", [1, 3, 30])
def test_any_width_is_taken(backend: Backend, width: int) -> None:
    routing, experts = random_routing(9, 4, 2), MLPExperts(4, width, 0.0, hidden=width + 4)
    x = torch.randn(9, width)
    torch.testing.assert_close(
        dispatch(x, routing, experts, backend), oracle.moe(x, routing, experts)
    )


@EACH
@pytest.mark.parametrize("edge", EDGES)
def test_dropout_is_drawn_for_the_rows_in_expert_order(
    backend: Backend, edge: str, device: str
) -> None:
    routing, p = on_device(EDGES[edge], device), 0.4
    experts = MLPExperts(4, D, p, hidden=HIDDEN, activation="gelu").to(device)
    x = torch.randn(len(routing.experts_NK), D, device=device, requires_grad=True)
    leaves, upstream = [x, *experts.parameters()], torch.randn_like(x)
    torch.manual_seed(5)
    y = dispatch(x, routing, experts, backend)

    chosen, K = routing.experts_NK.flatten().tolist(), routing.experts_NK.shape[1]
    dropped = [False] * len(chosen)
    if routing.dropped_NK is not None:
        dropped = routing.dropped_NK.flatten().tolist()
    rows = [s for s in range(len(chosen)) if device != "cpu" or not dropped[s]]
    rows.sort(key=lambda s: (chosen[s], dropped[s]))
    torch.manual_seed(5)
    mask_MD = experts.dropout(torch.ones(len(rows), D, device=device))
    naive = torch.zeros_like(x)
    for slot, mask_D in zip(rows, mask_MD, strict=True):
        n, k = divmod(slot, K)
        alone = routing._replace(
            weights_NK=routing.weights_NK[n : n + 1, k : k + 1] * (not dropped[slot]),
            experts_NK=routing.experts_NK[n : n + 1, k : k + 1],
            dropped_NK=None,
        )
        row = torch.zeros_like(x[:, :1]).index_fill(0, torch.tensor([n], device=device), 1.0)
        naive = naive + row * mask_D * oracle.moe(x[n : n + 1], alone, experts)
    torch.testing.assert_close(
        (y, *torch.autograd.grad(y, leaves, upstream, materialize_grads=True)),
        (naive, *torch.autograd.grad(naive, leaves, upstream, materialize_grads=True)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_dropout_falls_on_the_outputs_in_training_only() -> None:
    experts, routing = MLPExperts(4, 16, 0.25), random_routing(500, 4, 1)
    x = torch.randn(500, 16)
    y, kept = (dispatch(x, routing, e, Auto()) for e in (experts, experts))
    assert not torch.equal(y, kept)
    kept = dispatch(x, routing, experts.eval(), Auto())
    assert (y == 0).double().mean() == pytest.approx(0.25, abs=0.02)
    assert (kept != 0).all()
    torch.testing.assert_close(y[y != 0], (kept / 0.75)[y != 0])


class Elsewhere(Backend):
    """Has all experts, of which the layer holds some."""

    name = "elsewhere"

    def __init__(self, everyone: Experts) -> None:
        self.everyone = everyone

    def __call__(self, x_MD: Tensor, groups: Groups, experts: Experts) -> Tensor:
        assert len(groups.counts_E) == self.everyone.num_experts > experts.num_experts
        return Loop()(x_MD, groups, self.everyone)


@pytest.mark.parametrize("N", [1, 9])
def test_a_layer_may_hold_fewer_experts_than_its_router_knows(N: int) -> None:
    everyone = MLPExperts(4, D, 0.0)
    layer = MoELayer(TopKRouter(D, 4, 2), MLPExperts(2, D, 0.0), 1.0, backend=Elsewhere(everyone))
    for train in (True, False):
        x = torch.randn(1, N, D)
        y, routing = layer.train(train)(x)
        torch.testing.assert_close(y[0], oracle.moe(x[0], routing, everyone))
        if train:
            kept = ~torch.tensor(oracle.dropped(routing, max(1, N * 2 // 4), "position"))
            assert torch.equal(~routing.dropped_NK, kept)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    """Tensors have no values here: reading one, for which a GPU would be waited for, raises."""
    with FakeTensorMode() as mode:
        yield mode


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, None])
@pytest.mark.parametrize("order", ["position", "weight"])
@pytest.mark.parametrize("backend", ["padded", "grouped"])
@pytest.mark.usefixtures("keeping_dropped", "fake")
def test_a_step_waits_for_the_device_only_to_measure_what_is_padded(
    backend: str, order: str, factor: float | None
) -> None:
    layer = MoELayer(TopKRouter(D, 4, 2), MLPExperts(4, D, 0.1), factor, order, backend)
    x = torch.randn(2, 6, D, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):  # without values, grouped_mm takes bf16 only
        if backend == "padded" and factor is None:
            with pytest.raises(DataDependentOutputException):
                layer(x)
            return
        y, _ = layer(x)
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from(["position", "weight"]))
def test_capacity_drops_what_the_reference_drops(data: st.DataObject, order: str) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**32), "seed"))
    E, N = data.draw(st.integers(1, 6), "E"), data.draw(st.integers(1, 30), "N")
    K, capacity = data.draw(st.integers(1, E), "K"), data.draw(st.integers(1, N), "capacity")
    routing = random_routing(N, E, K)
    if data.draw(st.booleans(), "ties"):
        routing = routing._replace(weights_NK=(routing.weights_NK * 4).round() / 4)
    out = drop_over_capacity(routing, capacity, order)
    assert out.dropped_NK.tolist() == oracle.dropped(routing, capacity, order)
    assert out._replace(dropped_NK=None) == routing


def test_capacity_keeps_the_earlier_or_the_weightier() -> None:
    weights = torch.tensor([[0.2], [0.9], [0.5]])
    routing = assigned([[1], [1], [1]])._replace(weights_NK=weights)
    by_position = drop_over_capacity(routing, 2, "position").dropped_NK
    by_weight = drop_over_capacity(routing, 2, "weight").dropped_NK
    assert by_position.flatten().tolist() == [False, False, True]
    assert by_weight.flatten().tolist() == [True, False, False]
