"""How much a model holds and computes, worked out from its sizes alone.

One block is built on torch's meta device, where tensors have shapes and no memory, so that routers
and experts of all kinds count, a user's own too.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from makemoe.errors import UsageError
from makemoe.model.block import Architecture
from makemoe.model.experts import StackedLinear

MANY_EXPERTS = 1024
"""Up to so many, a block is built as it is; experts of a user's may be built one by one."""

OVERFLOWN = 1 << 60
"""At least so many elements has a tensor whose bytes torch cannot count."""

MODULE_BYTES, PARAMETER_BYTES = 2000, 500
"""Least memory of the Python objects of a module and a parameter, as measured (CPython 3.11)."""

FLOAT = 4
"""Bytes of a weight as it is built."""


class Bare(NamedTuple):
    """A block without memory.

    Attributes:
        parameters: weights that are trained.
        buffers: other numbers.
        objects: bytes of the Python objects, at least.
        widest: the largest input of the experts' layers.
    """

    parameters: int
    buffers: int
    objects: int
    widest: int


class Footprint(NamedTuple):
    """What a model takes, and what it computes for each token.

    Attributes:
        parameters: weights that are trained, exactly.
        buffers: other numbers, exactly.
        objects: bytes of the Python objects, at least.
        kept: numbers that training keeps of a token for the backward pass, at least.
    """

    parameters: int
    buffers: int
    objects: int
    kept: int

    @property
    def built(self) -> int:
        """Bytes of the model as it is built."""
        return (self.parameters + self.buffers) * FLOAT + self.objects


def footprint(model: Architecture) -> Footprint:
    """What a model of these sizes takes; nothing is allocated.

    Raises:
        UsageError: as the model's parts do, for sizes that do not go together.
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
    """A block of these sizes.

    Of many experts, the weights are told from those of two smaller numbers: exact for experts that
    are all alike.
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
    """Build a block without memory."""
    D = model.n_embd
    attention_and_norms = 4 * D * D + 5 * D
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), Unfilled():
            block = model.block()
    except UsageError:
        raise
    except Exception as error:
        # A class of a user's that cannot be built here counts as nothing: it says itself what is
        # wrong when it is built in earnest.
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
    """Numbers that a block keeps of a token: what the gradients of its weights are made of."""
    D = model.n_embd
    # Both norms' inputs and outputs; queries, keys and values; what attention gives.
    attention = 8 * D + (D if model.dropout > 0 else 0)
    # A chosen expert's input, what is between its layers, and its output.
    experts = D + widest + (D if widest > D else 0)
    # With a capacity, it depends on the weights how many tokens are not dropped.
    return attention + (model.top_k * experts if model.capacity_factor is None else 0)


class Unfilled(TorchFunctionMode):
    """Leaves tensors of the meta device alone: to fill one, torch imports its compiler."""

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
