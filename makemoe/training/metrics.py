"""What is measured: exact losses, and how evenly routers load their experts.

All are torchmetrics: `update` is local, `compute` sums over processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from makemoe.data.windows import IGNORE
from makemoe.model.router import Routing
from makemoe.training.losses import summed_cross_entropy


class TokenLoss(Metric):
    """Mean cross-entropy over every prediction seen, nats per token.

    Summed in float64 and divided once, so the batch size and the number of processes do not show.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, logits_BTV: Tensor, targets_BT: Tensor) -> None:
        """Add a batch; targets marked IGNORE do not count."""
        self.nats += summed_cross_entropy(logits_BTV, targets_BT)
        self.tokens += (targets_BT != IGNORE).sum()

    def compute(self) -> Tensor:
        """Mean loss, float64 scalar."""
        return self.nats / self.tokens


class RouterLoad(Metric):
    """Share of the assignments that each expert of each layer got, (L, E), rows adding up to 1.

    An assignment is one (token, chosen expert) pair, K a token, dropped ones included: it is what
    the router asked for.

    Args:
        n_layer: number of routers L.
        num_experts: experts per layer E.
    """

    full_state_update = False
    counts_LE: Tensor
    first_number_L: Tensor

    def __init__(self, n_layer: int, num_experts: int) -> None:
        super().__init__()
        first_number_L = torch.arange(n_layer) * num_experts
        self.register_buffer("first_number_L", first_number_L, persistent=False)
        zeros = torch.zeros(n_layer, num_experts, dtype=torch.int64)
        self.add_state("counts_LE", zeros, dist_reduce_fx="sum")

    def update(self, routings: Sequence[Routing], counted_N: Tensor | None = None) -> None:
        """Add a batch's routings, one a layer.

        Args:
            routings: of N tokens each.
            counted_N: which tokens count; None: all.
        """
        experts_LNK = torch.stack([routing.experts_NK for routing in routings])
        if counted_N is not None:
            experts_LNK = experts_LNK[:, counted_N]
        # One count over all layers: expert e of layer l is number l * E + e.
        numbers_LNK = experts_LNK + self.first_number_L[:, None, None]
        counts = numbers_LNK.flatten().bincount(minlength=self.counts_LE.numel())
        self.counts_LE += counts.view_as(self.counts_LE)

    def compute(self) -> Tensor:
        """Load shares, (L, E)."""
        return self.counts_LE / self.counts_LE.sum(-1, keepdim=True)


def max_violation(load_LE: Tensor) -> Tensor:
    """MaxVio of each layer, (L,): max(load) / mean(load) - 1 (arXiv:2408.15664, equation 4).

    0 is perfect balance; E / K - 1 is the most: every token goes to the same K experts.
    """
    return load_LE.amax(-1) / load_LE.mean(-1) - 1


def load_metrics(load_LE: Tensor) -> dict[str, Tensor]:
    """Loads and their MaxVio under the names they are logged by, for layers and over layers."""
    logged = {}
    violation_L = max_violation(load_LE)
    for layer, (load_E, violation) in enumerate(zip(load_LE, violation_L, strict=True)):
        for expert, load in enumerate(load_E):
            logged[f"layer_{layer}/load_{expert}"] = load
        logged[f"layer_{layer}/max_vio"] = violation
    logged["max_vio"] = violation_L.mean()
    return logged
