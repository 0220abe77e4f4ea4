"""The sparse mixture-of-experts layer: route, dispatch, compute, combine."""

import math
from typing import get_args

from torch import Tensor

from makemoe.errors import UsageError
from makemoe.group import ALONE, Group
from makemoe.model.backends import Backend, BackendName, choose_backend
from makemoe.model.dispatch import DropOrder, dispatch, drop_over_capacity
from makemoe.model.experts import Experts
from makemoe.model.feed_forward import FeedForward
from makemoe.model.router import Router, Routing


class MoELayer(FeedForward):
    """Sends each token through the K experts its router chose, instead of one feed-forward layer.

    In training, an expert takes at most capacity_factor * N * K / E assignments (rounded down, at
    least one) and the rest are dropped (arXiv:2101.03961, equation 3); the residual connection
    still carries their tokens. The N tokens are those of all processes that share the batch
    (`group`), so that several processes drop what one would. Evaluation and sampling never drop,
    because dropping would let later tokens change earlier ones.

    Args:
        router: chooses experts and weights.
        experts: the stacked experts.
        capacity_factor: None for no limit.
        drop_order: which assignments a full expert keeps; see `drop_over_capacity`.
        backend: how rows are multiplied by their expert's weights: a name or an object; see
            `makemoe.model.backends`.

    Raises:
        UsageError: if the factor is not above 0 and finite, or an order or backend is unknown.
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        capacity_factor: float | None = None,
        drop_order: DropOrder = "position",
        backend: BackendName | Backend = "auto",
    ) -> None:
        super().__init__()
        if capacity_factor is not None and not 0 < capacity_factor < math.inf:
            raise UsageError(
                f"capacity_factor {capacity_factor} is out of range: use a number above 0; 1.0 is "
                "the mean load"
            )
        if drop_order not in get_args(DropOrder):
            raise UsageError(f"drop_order {drop_order!r}: use {' or '.join(get_args(DropOrder))}")
        self.router, self.experts = router, experts
        self.capacity_factor: float | None = capacity_factor
        self.drop_order: DropOrder = drop_order
        self.backend = choose_backend(backend)
        self.group: Group = ALONE

    def chosen_backend(self) -> str:
        """The backend in use, with `auto` resolved for the current device and autocast."""
        return self.backend.description(next(self.experts.parameters()), self.experts)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        """The weighted sum of the experts, (B, T, D), and the routing of the N = B*T tokens."""
        x_ND = x_BTD.flatten(0, 1)
        routing: Routing = self.router(x_ND)
        capacity = None
        if self.training and self.capacity_factor is not None:
            routing, capacity = self.keep_to_capacity(routing, self.capacity_factor)
        y_ND = dispatch(x_ND, routing, self.experts, self.backend, capacity)
        return y_ND.view_as(x_BTD), routing

    def keep_to_capacity(self, routing: Routing, factor: float) -> tuple[Routing, int]:
        """Mark what experts cannot take of what all processes send; return the capacity too."""
        experts_NK, own = self.group.gather(routing.experts_NK)
        whole = routing._replace(experts_NK=experts_NK)
        if self.drop_order == "weight":
            weights_NK, _ = self.group.gather(routing.weights_NK.detach())
            whole = whole._replace(weights_NK=weights_NK)
        capacity = self.capacity(experts_NK.numel(), factor)
        dropped_NK = drop_over_capacity(whole, capacity, self.drop_order).dropped_NK
        assert dropped_NK is not None
        return routing._replace(dropped_NK=dropped_NK[own]), capacity

    def capacity(self, assignments: int, factor: float) -> int:
        """How many of so many assignments an expert takes."""
        even_load = assignments / self.router.num_experts
        return max(1, int(min(assignments, even_load * factor)))
