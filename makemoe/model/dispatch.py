"""Moves tokens to their experts and back.

The K assignments of all tokens are sorted by expert (M rows in total), computed group by group,
weighted, and summed per token:

    y_n = sum_k weights_nk * expert_{e_nk}(x_n)          (arXiv:1701.06538, equation 1)

Only chosen experts compute; how is up to a backend. Dropout is drawn here, for the rows in expert
order, so that with the same seed all backends give the same run up to rounding.
"""

from typing import Literal

import torch
from torch import Tensor

from makemoe.model.backends import Backend, Groups
from makemoe.model.experts import Experts, StackedLinear
from makemoe.model.router import Routing

DropOrder = Literal["position", "weight"]


def dispatch(
    x_ND: Tensor,
    routing: Routing,
    experts: Experts,
    backend: Backend,
    capacity: int | None = None,
) -> Tensor:
    """Send each token to its experts and return their weighted sum, (N, D) to (N, D).

    Args:
        x_ND: the tokens.
        routing: their experts, and what was dropped.
        experts: the experts.
        backend: computes them.
        capacity: no expert keeps more assignments than this, if it is known.
    """
    if takes_shortcut(x_ND, routing, experts):
        return dispatch_one(x_ND, routing, experts)
    cut, weights_NK = cuts_dropped(x_ND), routing.weights_NK
    if routing.dropped_NK is not None and not cut:
        weights_NK = weights_NK.masked_fill(routing.dropped_NK, 0.0)
    slots_M, counts_E = in_expert_order(routing, cut)
    tokens_M = slots_M // routing.experts_NK.shape[1]
    # The experts of a token are distinct, so none of them has a row more than there are tokens.
    longest = None if cut or capacity is None else min(capacity, len(x_ND))
    computed_MD = backend(x_ND.index_select(0, tokens_M), Groups(counts_E, longest), experts)
    y_MD: Tensor = experts.dropout(computed_MD)
    weighted_MD = y_MD * weights_NK.flatten().index_select(0, slots_M)[:, None]
    y_ND = weighted_MD.new_zeros(x_ND.shape).index_add(0, tokens_M, weighted_MD)
    return y_ND.to(x_ND.dtype)


def cuts_dropped(x_ND: Tensor) -> bool:
    """Whether rows of dropped assignments are left out instead of computed with weight zero.

    Their number depends on the routing, so a GPU would have to be waited for.
    """
    return x_ND.device.type == "cpu"


def takes_shortcut(x_ND: Tensor, routing: Routing, experts: Experts) -> bool:
    """Whether `dispatch_one` gives the same: one token, nothing dropped, all experts here."""
    return (
        len(x_ND) == 1
        and x_ND.device.type == "cpu"
        and not experts.training
        and routing.dropped_NK is None
        and routing.num_experts == experts.num_experts
    )


def dispatch_one(x_1D: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """`dispatch` for a single token, as in sampling: no sorting is needed."""

    def compute(e: int) -> Tensor:
        def linear(x_1I: Tensor, layer: StackedLinear) -> Tensor:
            if layer.bias is None:
                return x_1I @ layer.weight[e]
            return torch.addmm(layer.bias[e], x_1I, layer.weight[e])

        y_1D: Tensor = experts(x_1D, linear)
        return y_1D

    y_KD = torch.cat([compute(e) for e in routing.experts_NK[0].tolist()])
    return (routing.weights_NK.to(y_KD.dtype) @ y_KD).to(x_1D.dtype)


def in_expert_order(routing: Routing, cut: bool) -> tuple[Tensor, Tensor]:
    """The assignments sorted by expert: within an expert kept before dropped, then by token.

    Args:
        routing: the assignments of N tokens.
        cut: whether dropped assignments are left out.

    Returns:
        slots_M: indices into the N*K assignments, token-major.
        counts_E: their number per expert, of all experts.
    """
    E = routing.num_experts
    group = order = routing.experts_NK.flatten()
    if routing.dropped_NK is not None:
        dropped = routing.dropped_NK.flatten()
        # Those to be left out form a group after the last expert.
        group = group.masked_fill(dropped, E) if cut else group
        order = 2 * group + dropped
    slots = order.argsort(stable=True)
    # Not bincount, which would wait for the GPU.
    ones = torch.ones_like(group)
    counts_E = ones.new_zeros(E + 1).scatter_add(0, group, ones)[:E]
    if routing.dropped_NK is not None and cut:
        slots = slots[: int(counts_E.sum())]
    return slots, counts_E


def drop_over_capacity(routing: Routing, capacity: int, order: DropOrder) -> Routing:
    """Mark assignments beyond an expert's `capacity` as dropped.

    Args:
        routing: the assignments of N tokens.
        capacity: maximum number of assignments per expert.
        order: priority: `position` (earlier tokens first, as in makeMoE) or `weight` (larger
            combine weights first; the earlier token if they are equal).
    """
    expert_of_slot = routing.experts_NK.flatten()
    if order == "position":
        by_priority = torch.arange(expert_of_slot.numel(), device=expert_of_slot.device)
    else:
        by_priority = routing.weights_NK.flatten().argsort(descending=True, stable=True)
    by_expert = by_priority[expert_of_slot[by_priority].argsort(stable=True)]
    sorted_experts = expert_of_slot[by_expert]
    # The rank within a group is the distance from the start of the group.
    begins = torch.searchsorted(sorted_experts, sorted_experts)
    rank = torch.arange(by_expert.numel(), device=by_expert.device) - begins
    dropped = torch.empty_like(expert_of_slot, dtype=torch.bool)
    dropped[by_expert] = rank >= capacity
    return routing._replace(dropped_NK=dropped.view_as(routing.experts_NK))
