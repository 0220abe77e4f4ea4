import itertools

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from makemoe.errors import UsageError
from makemoe.model.dispatch import auto, dispatch, drop_over_capacity, grouped, loop, padded
from makemoe.model.experts import MLPExperts
from makemoe.model.moe import MoELayer
from makemoe.model.router import Routing, TopKRouter
from makemoe.model.transformer import MoETransformer

D, HIDDEN = 8, 24  # rows of a multiple of 16 bytes in bf16 too
BACKENDS = [loop, padded, grouped, auto]
IN_64 = [loop, padded, auto]  # grouped_mm has no float64


def random_routing(N: int, E: int, K: int, dropped: float = 0.0) -> Routing:
    logits = torch.randn(N, E)
    weights, experts = logits.topk(K)
    mask = torch.rand(N, K) < dropped
    mask[torch.randint(N, ()), torch.randint(K, ())] = False
    probs = logits.softmax(1)
    return Routing(weights.softmax(1), experts, logits, probs, mask if dropped else None)


def assigned(experts_NK: list[list[int]], dropped_NK: list[list[bool]] | None = None) -> Routing:
    experts = torch.tensor(experts_NK)
    weights = torch.linspace(0.1, 0.9, experts.numel()).view_as(experts)
    logits = torch.zeros(len(experts), 4)
    mask = None if dropped_NK is None else torch.tensor(dropped_NK)
    return Routing(weights, experts, logits, logits, mask)


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


def check(backend: object, routing: Routing, E: int, dtype: torch.dtype, activation: str) -> None:
    """Outputs and every gradient, against the oracle."""
    N = len(routing.experts_NK)
    experts = MLPExperts(E, D, 0.0, hidden=HIDDEN, activation=activation).to(dtype)
    x = torch.randn(N, D, dtype=dtype, requires_grad=True)
    weights = routing.weights_NK.to(dtype).requires_grad_()
    routing = routing._replace(weights_NK=weights)
    leaves, upstream = [x, weights, *experts.parameters()], torch.randn(N, D, dtype=dtype)

    def both(y: Tensor) -> tuple[Tensor, ...]:
        return y, *torch.autograd.grad(y, leaves, upstream, materialize_grads=True)

    fast = both(dispatch(x, routing, experts, backend))
    naive = both(oracle.moe(x, routing, experts))
    rounding = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(fast, naive, **rounding)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [*itertools.product(BACKENDS, [torch.float32]), *itertools.product(IN_64, [torch.float64])],
)
def test_equals_the_oracle_at_the_edges(backend: object, edge: str, dtype: torch.dtype) -> None:
    check(backend, EDGES[edge], 4, dtype, "relu")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=12)
@given(st.data())
def test_equals_the_oracle_for_any_routing(backend: object, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**32), "seed"))
    E, N = data.draw(st.integers(1, 9), "E"), data.draw(st.integers(1, 40), "N")
    K = data.draw(st.integers(1, E), "K")
    dropped = data.draw(st.sampled_from([0.0, 0.3, 0.9]), "dropped")
    check(backend, random_routing(N, E, K, dropped=dropped), E, torch.float32, "gelu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_bfloat16_autocast_agrees_to_its_rounding(backend: object, dropped: float) -> None:
    routing = random_routing(64, 4, 2, dropped=dropped)
    experts, computed_in = MLPExperts(4, D, 0.0, hidden=HIDDEN), []
    # Smooth: rounding flips the gradient of relu.
    experts.activation = lambda h: computed_in.append(h.dtype) or F.gelu(h)
    x = torch.randn(64, D, requires_grad=True)
    leaves, upstream = [x, *experts.parameters()], torch.randn(64, D)
    naive = oracle.moe(x, routing, experts)
    computed_in.clear()
    with torch.autocast("cpu", torch.bfloat16):
        y = dispatch(x, routing, experts, backend)
    assert (computed_in, y.dtype) == ([torch.bfloat16], torch.float32)
    for fast, exact in zip(
        (y, *torch.autograd.grad(y, leaves, upstream)),
        (naive, *torch.autograd.grad(naive, leaves, upstream)),
        strict=True,
    ):
        assert (fast - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("backend", [loop, padded, auto])
@pytest.mark.parametrize("width", [1, 3, 30])
def test_any_width_is_taken(backend: object, width: int) -> None:
    routing, experts = random_routing(9, 4, 2), MLPExperts(4, width, 0.0, hidden=width + 4)
    x = torch.randn(9, width)
    torch.testing.assert_close(
        dispatch(x, routing, experts, backend), oracle.moe(x, routing, experts)
    )


@pytest.mark.parametrize(("n_embd", "hidden"), [(30, 32), (32, 30)])
def test_grouped_names_the_widths_it_does_not_take(n_embd: int, hidden: int) -> None:
    experts = MLPExperts(4, n_embd, 0.0, hidden=hidden)
    with pytest.raises(UsageError, match=r"dispatch grouped .* multiples of 4, or use"):
        dispatch(torch.randn(9, n_embd), random_routing(9, 4, 2), experts, grouped)


# The tracer looks at .grad of what it takes up again after a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_equals_eager_in_outputs_and_gradients() -> None:
    net = MoETransformer(11, block_size=6, n_layer=2, n_head=2, n_embd=8, num_experts=4, top_k=2)
    ids = torch.randint(11, (3, 6))

    def results() -> list[torch.Tensor]:
        logits, routings = net(ids)
        gradients = torch.autograd.grad(logits.logsumexp(-1).sum(), list(net.parameters()))
        return [logits, *gradients, *(routing.experts_NK for routing in routings)]

    eager = results()
    # Traced and differentiated as for any compiler, run as it was traced.
    net.compile(backend="aot_eager")
    torch.testing.assert_close(results(), eager)


def test_the_backend_that_auto_takes_is_told() -> None:
    layer = MoELayer(TopKRouter(32, 4, 2), MLPExperts(4, 32, 0.0))
    assert layer.chosen_backend() == "grouped (auto)"
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.chosen_backend() == "padded (auto)"
    layer = MoELayer(TopKRouter(32, 4, 2), MLPExperts(4, 32, 0.0), backend="loop")
    assert layer.chosen_backend() == "loop"


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
