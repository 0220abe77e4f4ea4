import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makemoe.data.windows import ConsecutiveWindows, EvaluationBatches
from makemoe.group import Group
from makemoe.model.router import Routing
from makemoe.training.metrics import (
    DRIFT_TOKENS,
    RouterDrift,
    RouterStats,
    TokenLoss,
    by_name,
    dead_share,
)
from makemoe.training.thresholds import DEAD_BELOW

OF_LAYERS = (
    *("max_vio", "load_cv", "dead", "dropped"),
    *("load_entropy", "token_entropy", "first_weight", "logsumexp"),
)


def routed(N: int, E: int, K: int, share_dropped: float = 0.0) -> Routing:
    """N tokens routed at random, unevenly."""
    logits_NE = torch.randn(N, E) * 2 + torch.linspace(-2, 2, E)
    kept_NK, experts_NK = logits_NE.topk(K)
    dropped_NK = torch.rand(N, K) < share_dropped if share_dropped else None
    return Routing(kept_NK.softmax(-1), experts_NK, logits_NE, logits_NE.softmax(-1), dropped_NK)


def chosen(experts_NK: list[list[int]], E: int) -> Routing:
    """Tokens that go to these experts."""
    experts = torch.tensor(experts_NK)
    scores = torch.full((len(experts), E), 1 / E)
    return Routing(torch.ones(experts.shape) / experts.shape[1], experts, scores, scores)


def recomputed(batches: list[Routing], counted: list[np.ndarray], E: int) -> dict[str, np.ndarray]:
    """Figures of one layer, token by token, in NumPy and float64."""
    load_E, mass_E, dropped, entropies, firsts, sums = np.zeros(E), np.zeros(E), 0, [], [], []
    for routing, counted_N in zip(batches, counted, strict=True):
        for n in np.flatnonzero(counted_N):
            for k, e in enumerate(routing.experts_NK[n].tolist()):
                is_dropped = routing.dropped_NK is not None and bool(routing.dropped_NK[n, k])
                load_E[e] += 1
                dropped += is_dropped
                mass_E[e] += 0 if is_dropped else routing.weights_NK[n, k].item()
            scores_E = np.exp(routing.logits_NE[n].numpy().astype(np.float64))
            p_E = scores_E / scores_E.sum()
            entropies.append(-(p_E * np.log(p_E)).sum() / np.log(E))
            firsts.append(routing.weights_NK[n, 0].item())
            sums.append(np.log(scores_E.sum()))
    assignments = load_E.sum()
    load_E /= assignments
    taken_E = load_E[load_E > 0]
    return {
        "load": load_E,
        "mass": mass_E / mass_E.sum(),
        "max_vio": load_E.max() / load_E.mean() - 1,
        "load_cv": np.sqrt(((load_E - load_E.mean()) ** 2).mean()) / load_E.mean(),
        "dead": np.mean(load_E < DEAD_BELOW / E),
        "dropped": dropped / assignments,
        "load_entropy": -(taken_E * np.log(taken_E)).sum() / np.log(E),
        "token_entropy": np.mean(entropies),
        "first_weight": np.mean(firsts),
        "logsumexp": np.mean(sums),
    }


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
        for batch in EvaluationBatches(len(windows), batch_size, Group(rank, world_size)):
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


def test_sums_of_many_batches_do_not_drift() -> None:
    metric, N = RouterStats(1, 4, 2), 8
    metric.mass_LE += 1e7  # as after 10^8 tokens
    metric.sums_3L += 1e7
    routing = routed(N, 4, 2)
    for _ in range(1000):
        metric.update([routing])
    weights_NK, experts_NK = routing.weights_NK.double(), routing.experts_NK
    mass_E = torch.stack([weights_NK[experts_NK == e].sum() for e in range(4)]) * 1000
    figures, top_k = metric.figures(), 2
    torch.testing.assert_close(
        figures["mass"][0].double(), (1e7 + mass_E) / (4e7 + mass_E.sum()), rtol=2e-7, atol=0
    )
    logsumexp = 1e7 + routing.logits_NE.double().logsumexp(-1).sum() * 1000
    tokens = metric.counts_LE.sum() / top_k
    torch.testing.assert_close(
        figures["logsumexp"][0].double(), logsumexp / tokens, rtol=2e-7, atol=0
    )


def test_figures_are_float32_where_the_default_is_bfloat16() -> None:
    metric, drift = RouterStats(1, 4, 2), RouterDrift(1, 2, block_size=4)
    metric.update([routed(1000, 4, 2, 0.3)])
    text = [[[0, 1]] * 4] * 333
    validated(drift, text)
    text[0] = [[2, 3]] * 4
    expected = metric.figures()
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.testing.assert_close(metric.figures(), expected, rtol=0, atol=0)
        assert validated(drift, text)["drift"] == pytest.approx(1 / 333, rel=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_token_loss_forgets_when_reset() -> None:
    metric, targets = TokenLoss(), torch.zeros(1, 1, dtype=torch.int64)
    metric.update(torch.tensor([[[0.0, 9.0]]]), targets)
    metric.reset()
    metric.update(torch.zeros(1, 1, 2), targets)
    assert metric.compute().item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(("E", "K", "drops"), [(8, 2, 0.3), (5, 1, 0.0), (3, 3, 0.1)])
def test_figures_of_routers_are_those_of_numpy(E: int, K: int, drops: float) -> None:
    metric, L, Ns = RouterStats(3, E, K), 3, (40, 7)
    batches = [[routed(N, E, K, drops) for _ in range(L)] for N in Ns]
    counted = [np.arange(N) < N - 3 for N in Ns]
    for routings, counted_N in zip(batches, counted, strict=True):
        metric.update(routings, torch.from_numpy(counted_N))
    figures = metric.figures()
    for layer in range(L):
        expected = recomputed([routings[layer] for routings in batches], counted, E)
        assert expected.keys() == figures.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(figures[name][layer], value, rtol=2e-6, atol=1e-6)


def test_all_tokens_count_unless_told() -> None:
    told, untold = RouterStats(2, 4, 2), RouterStats(2, 4, 2)
    routings = [routed(9, 4, 2), routed(9, 4, 2)]
    told.update(routings, torch.ones(9, dtype=torch.bool))
    untold.update(routings)
    torch.testing.assert_close(told.figures(), untold.figures())


@pytest.mark.parametrize(("E", "K"), [(8, 2), (4, 1), (64, 8)])
def test_perfect_balance_and_collapse_have_closed_forms(E: int, K: int) -> None:
    even = [[(n + k) % E for k in range(K)] for n in range(3 * E)]
    collapsed = [list(range(K))] * (3 * E)
    metric = RouterStats(2, E, K)
    metric.update([chosen(even, E), chosen(collapsed, E)])
    figures = metric.figures()
    expected = {
        "max_vio": [0, E / K - 1],
        "load_cv": [0, np.sqrt(E / K - 1)],
        "dead": [0, 1 - K / E],
        "load_entropy": [1, np.log(K) / np.log(E)],
        "token_entropy": [1, 1],
        "first_weight": [1 / K, 1 / K],
        "logsumexp": [np.log(E) + 1 / E] * 2,
        "dropped": [0, 0],
    }
    assert expected.keys() == set(OF_LAYERS)
    for name, values in expected.items():
        assert figures[name].tolist() == pytest.approx(values, abs=2e-6), name


def test_one_expert_is_in_perfect_balance() -> None:
    metric = RouterStats(1, 1, 1)
    metric.update([chosen([[0]] * 5, 1)])
    figures = {name: value.item() for name, value in metric.compute().items()}
    assert figures["load_entropy"] == figures["token_entropy"] == 1
    assert figures["max_vio"] == figures["load_cv"] == figures["dead"] == 0
    assert figures["layer_0/load_0"] == figures["layer_0/mass_0"] == 1


def test_an_expert_is_dead_below_the_threshold_and_alive_at_it() -> None:
    load = torch.tensor([[DEAD_BELOW / 2 * 0.99, 1 - DEAD_BELOW / 2 * 0.99]])
    assert dead_share(load).item() == 0.5
    assert dead_share(torch.tensor([[DEAD_BELOW, 2 - DEAD_BELOW]]) / 2).item() == 0


def test_load_and_gate_mass_are_different_things() -> None:
    routing = chosen([[0, 1], [0, 1]], 2)._replace(weights_NK=torch.tensor([[0.9, 0.1]] * 2))
    metric = RouterStats(1, 2, 2)
    metric.update([routing])
    torch.testing.assert_close(metric.figures()["load"], torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(metric.figures()["mass"], torch.tensor([[0.9, 0.1]]))


def test_statistics_forget_when_reset() -> None:
    metric, routing = RouterStats(1, 4, 2), routed(6, 4, 2)
    metric.update([routed(5, 4, 2)])
    metric.reset()
    metric.update([routing])
    fresh = RouterStats(1, 4, 2)
    fresh.update([routing])
    torch.testing.assert_close(metric.compute(), fresh.compute())


def test_figures_are_named_by_layer_and_expert() -> None:
    figures = {
        "load": torch.tensor([[0.5, 0.5], [0.75, 0.25]]),
        "max_vio": torch.tensor([0.0, 0.5]),
        "dropped": torch.tensor([0.5, 0.0]),
    }
    assert {name: value.item() for name, value in by_name(figures).items()} == {
        "layer_0/load_0": 0.5,
        "layer_0/load_1": 0.5,
        "layer_1/load_0": 0.75,
        "layer_1/load_1": 0.25,
        "layer_0/max_vio": 0.0,
        "layer_1/max_vio": 0.5,
        "max_vio": 0.25,
        "worst_max_vio": 0.5,
        "layer_0/dropped": 0.5,
        "layer_1/dropped": 0.0,
        "dropped": 0.25,
    }


def validated(
    drift: RouterDrift, text: list[list[list[int]]], batch_size: int = 64, world_size: int = 1
) -> dict[str, float]:
    """Drift at a validation of a text of windows of tokens' experts, one layer."""
    T = drift.block_size
    for rank in range(world_size):
        drift.windows_seen = 0  # as another process's own
        group = Group(rank, world_size)
        for batch in EvaluationBatches(len(text), batch_size, group):
            windows = [text[w] if w < len(text) else [[0, 1]] * T for w in batch]
            counted = torch.tensor([w < len(text) for w in batch]).repeat_interleave(T)
            tokens = [token for window in windows for token in window]
            drift.update([chosen(tokens, 4)], counted, group)
    found = {name: value.item() for name, value in drift.compute().items()}
    drift.reset()
    return found


@pytest.mark.parametrize(("batch_size", "world_size"), [(64, 1), (2, 1), (2, 2), (64, 3)])
def test_drift_is_the_share_of_tokens_whose_experts_changed(
    batch_size: int, world_size: int
) -> None:
    drift = RouterDrift(1, 2, block_size=4)
    text = [[[0, 1], [2, 3], [1, 2], [0, 3]] for _ in range(5)]
    shares = batch_size, world_size
    assert validated(drift, text, *shares) == {}
    assert validated(drift, text, *shares)["drift"] == 0
    text[0][0], text[4][3] = [1, 0], [2, 3]  # the same set; another
    text[3][1] = [2, 1]
    assert validated(drift, text, *shares)["layer_0/drift"] == pytest.approx(2 / 20)
    assert validated(drift, text, *shares)["drift"] == 0


def test_drift_looks_at_the_beginning_of_a_long_text() -> None:
    drift, windows = RouterDrift(1, 2, block_size=4), DRIFT_TOKENS // 4
    text = [[[0, 1]] * 4 for _ in range(windows + 3)]
    validated(drift, text, 100, 2)
    changed = [[[0, 1]] * 4] * (windows - 1) + [[[2, 3]] * 4] * 4
    assert validated(drift, changed, 100, 2)["drift"] == pytest.approx(1 / windows)
