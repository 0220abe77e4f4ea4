"""Sums over the assignments of each expert, and figures as numbers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from makemoe.model.router import Routing


def count_assignments(routings: Sequence[Routing]) -> Tensor:
    """Number of assignments per router and expert, int64 (L, E), including dropped ones."""
    if not routings:
        return torch.zeros(0, 0, dtype=torch.int64)
    experts_LNK = torch.stack([routing.experts_NK for routing in routings])
    return sum_by_expert(experts_LNK, torch.ones_like(experts_LNK), routings[0].probs_NE.shape[1])


def sum_by_expert(experts_LNK: Tensor, values_LNK: Tensor, num_experts: int) -> Tensor:
    """Sum the values of the assignments of each layer and expert, (L, E)."""
    L, E = len(experts_LNK), num_experts
    # One scatter for all layers: expert e of layer l has number l * E + e. `bincount` would wait
    # for the device.
    first_number_L = torch.arange(0, L * E, E, device=experts_LNK.device)
    numbers = (experts_LNK + first_number_L[:, None, None]).flatten()
    return values_LNK.new_zeros(L * E).scatter_add_(0, numbers, values_LNK.flatten()).view(L, E)


def as_numbers(figures: Mapping[str, Tensor | float], device: torch.device) -> dict[str, float]:
    """Figures, which may be on a device, as numbers; the device is waited for once."""
    tensors = [figure for figure in figures.values() if isinstance(figure, Tensor)]
    on_device = [tensor.to(device, torch.float32) for tensor in tensors]
    numbers = iter(torch.stack(on_device).tolist() if on_device else [])
    return {
        name: next(numbers) if isinstance(figure, Tensor) else figure
        for name, figure in figures.items()
    }
