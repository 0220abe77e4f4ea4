"""How many numbers a model stores and computes, derived from its sizes only.

One block is built on torch's meta device, where tensors have shapes but no memory, so that all
kinds of routers and experts are counted, including the user's own.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from makemoe.errors import UsageError
from makemoe.model.block import Architecture
from makemoe.model.experts import StackedLinear

MANY_EXPERTS = 1024
"""With more experts than this, they are not all built; a user's class may build them one by one."""

OVERFLOWN = 1 << 60
"""Minimum number of elements of a tensor whose size in bytes overflows in torch."""

MODULE_BYTES, PARAMETER_BYTES = 2000, 500
"""Minimum memory of the Python objects of a module and a parameter, measured on CPython 3.11."""

FLOAT = 4
"""Bytes per weight of a newly built model."""


class Bare(NamedTuple):
    """The sizes of one block.

    Attributes:
        parameters: number of trained weights.
        buffers: number of other stored values.
        objects: minimum bytes of the Python objects.
        widest: largest input width of the experts' layers.
    """

    parameters: int
    buffers: int
    objects: int
    widest: int


class Footprint(NamedTuple):
    """The sizes of a model, and of what training stores per token.

    Attributes:
        parameters: exact number of trained weights.
        buffers: exact number of other stored values.
        objects: minimum bytes of the Python objects.
        kept: minimum number of values per token that training keeps for the backward pass.
    """

    parameters: int
    buffers: int
    objects: int
    kept: int

    @property
    def built(self) -> int:
        """Bytes of the newly built model."""
        return (self.parameters + self.buffers) * FLOAT + self.objects


def footprint(model: Architecture) -> Footprint:
    """The footprint of a model with these sizes; nothing is allocated.

    Raises:
        UsageError: from the model's parts, for sizes that do not fit together.
    """
    block, D, V, L = bare_block(model), model.n_embd, model.vocab_size, model.n_layer
    outside = V * D + model.block_size * D + 2 * D + D * V + V
    return Footprint(
        outside + L * block.parameters,
        L * block.buffers,
        L * block.objects,
        2 * D + L * kept(model, block.widest),
    )


def bare_block(model: Architecture) -> Bare:
    """The sizes of one block.

    For many experts they are extrapolated from two smaller numbers of experts; this is exact if all
    experts have the same size.
    """
    if model.num_experts <= MANY_EXPERTS:
        return build_bare(model)
    fewer, more = (
        build_bare(replace(model, num_experts=E, top_k=min(model.top_k, E)))
        for E in (MANY_EXPERTS, MANY_EXPERTS + 1)
    )
    beyond = model.num_experts - MANY_EXPERTS
    sums = (few + beyond * max(0, many - few) for few, many in zip(fewer, more, strict=True))
    return Bare(*sums)._replace(widest=fewer.widest)


def build_bare(model: Architecture) -> Bare:
    """Build a block without allocating memory, and return its sizes."""
    D = model.n_embd
    attention_and_norms = 4 * D * D + 5 * D
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), Unfilled():
            block = model.block()
    except UsageError:
        raise
    except Exception as error:
        # A user's class that cannot be built here counts as nothing: it raises its own error when
        # the model is really built.
        least = OVERFLOWN if "overflow" in str(error).lower() else 0
        return Bare(max(attention_and_norms, least), 0, 0, 0)
    modules, parameters = list(block.modules()), list(block.parameters())
    layers = [layer for layer in modules if isinstance(layer, StackedLinear)]
    return Bare(
        parameters=sum(tensor.numel() for tensor in parameters),
        buffers=sum(tensor.numel() for tensor in block.buffers()),
        objects=len(modules) * MODULE_BYTES + len(parameters) * PARAMETER_BYTES,
        widest=max((layer.in_features for layer in layers), default=0),
    )


def kept(model: Architecture, widest: int) -> int:
    """Values that a block keeps per token: those that the gradients of its weights need."""
    D = model.n_embd
    # Inputs and outputs of both norms; queries, keys and values; the output of attention.
    attention = 8 * D + (D if model.dropout > 0 else 0)
    # Input, hidden activations and output of a chosen expert.
    experts = D + widest + (D if widest > D else 0)
    # With a capacity, the number of dropped tokens depends on the weights.
    return attention + (model.top_k * experts if model.capacity_factor is None else 0)


class Unfilled(TorchFunctionMode):
    """Skips filling tensors on the meta device, for which torch would import its compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


FILLS = {
    *("normal_", "uniform_", "zeros_", "ones_", "constant_", "zero_", "fill_", "trunc_normal_"),
    *("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_"),
}
