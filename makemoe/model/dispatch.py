"""Moves tokens to their experts and back.

The K assignments of all tokens are sorted by expert (M rows in total), computed group by group,
weighted, and summed per token:

    y_n = sum_k weights_nk * expert_{e_nk}(x_n)          (arXiv:1701.06538, equation 1)

Only chosen experts compute. Backends differ in how they multiply a group of rows by its expert's
weights; outputs and gradients agree up to rounding.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from makemoe.errors import UsageError
from makemoe.model.experts import Experts, StackedLinear
from makemoe.model.router import Routing

Backend = Callable[[Tensor, Tensor, Experts], Tensor]
"""Maps rows in expert order (M, D) and their number per expert (E,) to the experts' outputs."""

BackendName = Literal["auto", "loop", "padded", "grouped"]
DropOrder = Literal["position", "weight"]


def dispatch(x_ND: Tensor, routing: Routing, experts: Experts, backend: Backend) -> Tensor:
    """Send each token to its experts and return their weighted sum, (N, D) to (N, D)."""
    if len(x_ND) == 1 and routing.dropped_NK is None and x_ND.device.type == "cpu":
        return dispatch_one(x_ND, routing, experts)
    top_k = routing.experts_NK.shape[1]
    slots_M, counts_E = in_expert_order(routing, experts.num_experts)
    tokens_M = slots_M // top_k
    y_MD = backend(x_ND.index_select(0, tokens_M), counts_E, experts)
    weights_M = routing.weights_NK.flatten().index_select(0, slots_M)
    weighted_MD = y_MD * weights_M[:, None]
    y_ND = weighted_MD.new_zeros(x_ND.shape).index_add(0, tokens_M, weighted_MD)
    return y_ND.to(x_ND.dtype)


def dispatch_one(x_1D: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """`dispatch` for a single token, as in sampling: no sorting is needed."""

    def compute(e: int) -> Tensor:
        def linear(x_1I: Tensor, layer: StackedLinear) -> Tensor:
            return torch.addmm(layer.bias[e], x_1I, layer.weight[e])

        y_1D: Tensor = experts(x_1D, linear)
        return y_1D

    y_KD = torch.cat([compute(e) for e in routing.experts_NK[0].tolist()])
    return (routing.weights_NK.to(y_KD.dtype) @ y_KD).to(x_1D.dtype)


def in_expert_order(routing: Routing, num_experts: int) -> tuple[Tensor, Tensor]:
    """The kept assignments, sorted by expert and within an expert by token.

    Returns:
        slots_M: indices into the N*K assignments, token-major.
        counts_E: their number per expert.
    """
    expert_of_slot = routing.experts_NK.flatten()
    if routing.dropped_NK is not None:
        # Dropped assignments are sorted after the last expert and cut off there.
        expert_of_slot = expert_of_slot.masked_fill(routing.dropped_NK.flatten(), num_experts)
    slots = expert_of_slot.argsort(stable=True)
    # Not bincount, which would wait for the GPU.
    ones = torch.ones_like(expert_of_slot)
    counts = ones.new_zeros(num_experts + 1).scatter_add(0, expert_of_slot, ones)
    counts_E = counts[:num_experts]
    if routing.dropped_NK is not None:
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


def loop(x_MD: Tensor, counts_E: Tensor, experts: Experts) -> Tensor:
    """One matrix product per expert; the simplest backend, so read it first."""
    counts = counts_E.tolist()

    def linear(x_MI: Tensor, layer: StackedLinear) -> Tensor:
        rows = torch.split(x_MI, counts)
        groups = zip(rows, layer.weight.unbind(), layer.bias.unbind(), strict=True)
        return torch.cat([F.linear(x, w.t(), b) for x, w, b in groups])

    y_MD: Tensor = experts(x_MD, linear)
    return y_MD


def padded(x_MD: Tensor, counts_E: Tensor, experts: Experts) -> Tensor:
    """One batched matrix product over groups padded to one length C.

    C is rounded up to a multiple of a quarter of the mean load, so that few shapes occur: a CPU
    builds a kernel for every new shape of a bf16 product.
    """
    E, (M, D) = experts.num_experts, x_MD.shape
    quantum = max(8, M // E // 4)
    capacity = -(-int(counts_E.max()) // quantum) * quantum
    expert_M = torch.repeat_interleave(counts_E, output_size=M)
    begins_E = counts_E.cumsum(0) - counts_E
    rank_M = torch.arange(M, device=x_MD.device) - begins_E[expert_M]
    rows_M = expert_M * capacity + rank_M
    x_ECD = x_MD.new_zeros(E * capacity, D).index_copy(0, rows_M, x_MD).view(E, capacity, D)

    def linear(x_ECI: Tensor, layer: StackedLinear) -> Tensor:
        return torch.baddbmm(layer.bias[:, None], x_ECI, layer.weight)

    y_ECD: Tensor = experts(x_ECD, linear)
    return y_ECD.flatten(0, 1).index_select(0, rows_M)


def grouped(x_MD: Tensor, counts_E: Tensor, experts: Experts) -> Tensor:
    """One grouped matrix product, `torch.nn.functional.grouped_mm`: no padding, no host sync.

    Fast in bf16 on CUDA devices of capability 9.0 and above; elsewhere a loop inside torch. The
    size of a row in bytes must be a multiple of 16.
    """
    dtype = product_dtype(x_MD)
    if not takes_grouped(x_MD, experts):
        raise UsageError(
            f"dispatch grouped does not support these widths in {dtype}: make n_embd and the "
            f"experts' hidden width multiples of {16 // dtype.itemsize}, or use dispatch auto"
        )
    ends_E = counts_E.cumsum(0).to(torch.int32)
    expert_M = torch.repeat_interleave(counts_E, output_size=x_MD.shape[0])

    def linear(x_MI: Tensor, layer: StackedLinear) -> Tensor:
        y_MO = F.grouped_mm(x_MI.to(dtype), layer.weight.to(dtype), offs=ends_E)
        y_MO += layer.bias.to(dtype).index_select(0, expert_M)
        return y_MO

    y_MD: Tensor = experts(x_MD, linear)
    return y_MD


def choose_backend(name: BackendName) -> Backend:
    """The backend with that name."""
    return {"auto": auto, "loop": loop, "padded": padded, "grouped": grouped}[name]


def auto(x_MD: Tensor, counts_E: Tensor, experts: Experts) -> Tensor:
    """The backend that `fastest` names."""
    return choose_backend(fastest(x_MD, experts))(x_MD, counts_E, experts)


def fastest(x: Tensor, experts: Experts) -> BackendName:
    """The backend measured fastest for this device and dtype that supports these sizes."""
    dtype = product_dtype(x)
    faster_grouped = {"cpu": [torch.float32], "cuda": [torch.bfloat16, torch.float16]}
    if dtype in faster_grouped.get(x.device.type, []) and takes_grouped(x, experts):
        return "grouped"
    return "padded"


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a matrix product with x; autocast does not handle grouped_mm."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def takes_grouped(x: Tensor, experts: Experts) -> bool:
    """Whether grouped_mm supports this dtype here and rows are multiples of 16 bytes."""
    dtype = product_dtype(x)
    if x.device.type == "cpu" and torch.compiler.is_compiling():
        return False  # torch can trace it in bf16 on CUDA only
    layers = [layer for layer in experts.modules() if isinstance(layer, StackedLinear)]
    widths = [width for layer in layers for width in (layer.in_features, layer.out_features)]
    return dtype != torch.float64 and all(width * dtype.itemsize % 16 == 0 for width in widths)
