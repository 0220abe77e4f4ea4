import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makemoe.data.windows import IGNORE, ConsecutiveWindows, EvaluationBatches
from makemoe.model.router import Routing
from makemoe.training.metrics import RouterLoad, TokenLoss, load_metrics, max_violation


def routed(experts_NK: list[list[int]], num_experts: int) -> Routing:
    experts = torch.tensor(experts_NK)
    scores = torch.zeros(len(experts), num_experts)
    return Routing(torch.rand(experts.shape), experts, scores, scores)


@settings(deadline=None, max_examples=25)
@given(
    tokens=st.integers(2, 60),
    block_size=st.integers(1, 9),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
)
def test_token_loss_is_the_mean_over_the_text_for_any_batching(
    tokens: int, block_size: int, batch_size: int, world_size: int
) -> None:
    rng = np.random.default_rng(tokens)
    ids, table = rng.integers(5, size=tokens), rng.normal(size=(5, 5)).astype(np.float32)
    scores = table.astype(np.float64)[ids[:-1]]
    losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(tokens - 1), ids[1:]]
    metric, windows = TokenLoss(), ConsecutiveWindows(ids, block_size)
    for rank in range(world_size):
        for batch in EvaluationBatches(len(windows), batch_size, rank, world_size):
            x, y = windows.__getitems__(batch)
            metric.update(torch.from_numpy(table)[x], y)
    assert metric.compute().item() == pytest.approx(losses.mean(), rel=1e-6)
    assert metric.compute().dtype == torch.float64
    assert metric.tokens == tokens - 1


def test_token_loss_sums_in_float64() -> None:
    metric = TokenLoss()
    metric.nats += 2.0**40
    metric.update(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.int64))
    assert metric.nats.item() - 2.0**40 == pytest.approx(np.log(2), rel=1e-3)


def test_token_loss_forgets_when_reset() -> None:
    metric, targets = TokenLoss(), torch.zeros(1, 1, dtype=torch.int64)
    metric.update(torch.tensor([[[0.0, 9.0]]]), targets)
    metric.reset()
    metric.update(torch.zeros(1, 1, 2), targets)
    assert metric.compute().item() == pytest.approx(np.log(2))


def test_router_load_counts_assignments_by_layer_and_batch() -> None:
    metric = RouterLoad(2, 4)
    metric.update([routed([[0, 1], [0, 2]], 4), routed([[3, 2], [3, 1]], 4)])
    metric.update([routed([[1, 0]], 4), routed([[3, 0]], 4)])
    torch.testing.assert_close(metric.compute(), torch.tensor([[3, 2, 1, 0], [1, 1, 1, 3]]) / 6)


def test_router_load_counts_dropped_assignments_and_skips_masked_tokens() -> None:
    metric, routing = RouterLoad(1, 3), routed([[0, 1], [1, 2], [0, 2]], 3)
    routing = routing._replace(dropped_NK=torch.ones(3, 2, dtype=torch.bool))
    metric.update([routing], torch.tensor([[1, IGNORE, 2]]).flatten() != IGNORE)
    torch.testing.assert_close(metric.compute(), torch.tensor([[0.5, 0.25, 0.25]]))


@pytest.mark.parametrize(("E", "K"), [(8, 2), (4, 1), (5, 5)])
def test_max_violation_closed_forms(E: int, K: int) -> None:
    load = torch.zeros(3, E)
    load[0], load[1, :K] = 1 / E, 1 / K
    load[2] = torch.arange(1, E + 1) / sum(range(1, E + 1))
    expected = [0.0, E / K - 1, 2 * E / (E + 1) - 1]
    assert max_violation(load).tolist() == pytest.approx(expected, abs=1e-6)


def test_load_metrics_are_named_by_layer_and_expert() -> None:
    logged = load_metrics(torch.tensor([[0.5, 0.5], [0.75, 0.25]]))
    assert {name: value.item() for name, value in logged.items()} == {
        "layer_0/load_0": 0.5,
        "layer_0/load_1": 0.5,
        "layer_0/max_vio": 0.0,
        "layer_1/load_0": 0.75,
        "layer_1/load_1": 0.25,
        "layer_1/max_vio": 0.5,
        "max_vio": 0.25,
    }
