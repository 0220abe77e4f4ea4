import numpy as np
import pytest
import torch

from makemoe.model.router import Routing
from makemoe.training.affinity import PairCounts, SymbolCounts

L, V, E, K = 3, 7, 5, 2


def batch(seed: int, N: int = 40) -> tuple[list[Routing], torch.Tensor, torch.Tensor]:
    """Routings of each layer, symbols, and which tokens count."""
    rng = np.random.default_rng(seed)
    experts_LNK = rng.permuted(np.tile(np.arange(E), (L, N, 1)), axis=-1)[..., :K]
    none = torch.empty(0)
    routings = [Routing(none, torch.from_numpy(e), none, none) for e in experts_LNK]
    return (
        routings,
        torch.from_numpy(rng.integers(V, size=N)),
        torch.from_numpy(rng.random(N) < 0.7),
    )


def symbols_by_hand(batches: list[tuple[list[Routing], torch.Tensor, torch.Tensor]]) -> np.ndarray:
    counts = np.zeros((L, V, E), np.int64)
    for routings, ids_N, counted_N in batches:
        for layer, routing in enumerate(routings):
            for symbol, chosen, counted in zip(ids_N, routing.experts_NK, counted_N, strict=True):
                for expert in chosen:
                    counts[layer, symbol, expert] += int(counted)
    return counts


def pairs_by_hand(batches: list[tuple[list[Routing], torch.Tensor, torch.Tensor]]) -> np.ndarray:
    counts = np.zeros((L, E, E), np.int64)
    for routings, _, counted_N in batches:
        for layer, routing in enumerate(routings):
            for chosen in routing.experts_NK[counted_N].tolist():
                for a in chosen:
                    for b in chosen:
                        counts[layer, a, b] += 1
    return counts


def test_symbols_are_counted_where_their_tokens_went() -> None:
    batches, metric = [batch(1), batch(2)], SymbolCounts(L, V, E)
    for routings, ids_N, counted_N in batches:
        metric.update(routings, ids_N, counted_N)
    np.testing.assert_array_equal(metric.compute(), symbols_by_hand(batches))


def test_experts_chosen_together_are_counted() -> None:
    batches, metric = [batch(3), batch(4)], PairCounts(L, E)
    for routings, _, counted_N in batches:
        metric.update(routings, counted_N)
    np.testing.assert_array_equal(metric.compute(), pairs_by_hand(batches))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_processes_add_their_counts() -> None:
    batches = [batch(5), batch(6)]
    symbols = [SymbolCounts(L, V, E) for _ in batches]
    pairs = [PairCounts(L, E) for _ in batches]
    for (routings, ids_N, counted_N), one, other in zip(batches, symbols, pairs, strict=True):
        one.update(routings, ids_N, counted_N)
        other.update(routings, counted_N)
    symbols[0].merge_state(symbols[1])
    pairs[0].merge_state(pairs[1])
    np.testing.assert_array_equal(symbols[0].compute(), symbols_by_hand(batches))
    np.testing.assert_array_equal(pairs[0].compute(), pairs_by_hand(batches))
