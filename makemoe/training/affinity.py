"""Counts of symbols per expert, and of experts chosen together.

All are torchmetrics: `update` is local, `compute` sums over processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from makemoe.model.router import Routing
from makemoe.training.metrics import SummingMetric


class SymbolCounts(SummingMetric):
    """How often each symbol went to each expert of each router, (L, V, E) int64.

    counts[l, v, e] = sum over tokens n of [symbol of n is v] * [e is among the K experts of n], so
    that the row of a symbol in each layer adds up to K times its occurrences.

    Args:
        n_layer: number of routers L.
        vocab_size: number of symbols V.
        num_experts: experts per layer E.
    """

    full_state_update = False
    counts_LVE: Tensor

    def __init__(self, n_layer: int, vocab_size: int, num_experts: int) -> None:
        super().__init__()
        zeros = torch.zeros(n_layer, vocab_size, num_experts, dtype=torch.int64)
        self.add_state("counts_LVE", zeros, dist_reduce_fx="sum")

    def update(self, routings: Sequence[Routing], ids_N: Tensor, counted_N: Tensor) -> None:
        """Add a batch's routings, one per router, of tokens `ids_N`, where `counted_N` is true."""
        L, V, E = self.counts_LVE.shape
        experts_LNK = torch.stack([routing.experts_NK for routing in routings])[:, counted_N]
        layer_L11 = torch.arange(L, device=experts_LNK.device)[:, None, None]
        # One count over all layers: symbol v at expert e of layer l is number (l * V + v) * E + e.
        numbers_LNK = (layer_L11 * V + ids_N[counted_N][:, None]) * E + experts_LNK
        counts = numbers_LNK.flatten().bincount(minlength=L * V * E)
        self.counts_LVE += counts.view_as(self.counts_LVE)

    def compute(self) -> Tensor:
        """The counts, (L, V, E)."""
        return self.counts_LVE


class PairCounts(SummingMetric):
    """How often two experts of a layer were chosen for the same token, (L, E, E) int64.

    counts[l, a, b] = sum over tokens n of [a and b are among the K experts of n]: symmetric, with
    the number of tokens of each expert on the diagonal.

    Args:
        n_layer: number of routers L.
        num_experts: experts per layer E.
    """

    full_state_update = False
    counts_LEE: Tensor

    def __init__(self, n_layer: int, num_experts: int) -> None:
        super().__init__()
        zeros = torch.zeros(n_layer, num_experts, num_experts, dtype=torch.int64)
        self.add_state("counts_LEE", zeros, dist_reduce_fx="sum")

    def update(self, routings: Sequence[Routing], counted_N: Tensor) -> None:
        """Add a batch's routings, one per router, where `counted_N` is true."""
        L, E, _ = self.counts_LEE.shape
        experts_LNK = torch.stack([routing.experts_NK for routing in routings])[:, counted_N]
        layer_L111 = torch.arange(L, device=experts_LNK.device)[:, None, None, None]
        numbers_LNKK = (layer_L111 * E + experts_LNK[..., :, None]) * E + experts_LNK[..., None, :]
        counts = numbers_LNKK.flatten().bincount(minlength=L * E * E)
        self.counts_LEE += counts.view_as(self.counts_LEE)

    def compute(self) -> Tensor:
        """The counts, (L, E, E)."""
        return self.counts_LEE
