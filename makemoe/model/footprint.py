"""How many numbers a model stores and computes, derived from its sizes only.

One part of each kind is built on torch's meta device, where tensors have shapes but no memory, so
that all kinds of parts are counted, including the user's own.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from makemoe.errors import UsageError
from makemoe.model.attention import CausalSelfAttention
from makemoe.model.block import Architecture
from makemoe.model.experts import Experts, GatedExperts, MLPExperts, StackedLinear
from makemoe.model.moe import MoELayer
from makemoe.model.norm import LayerNorm, RMSNorm
from makemoe.model.positions import RotaryPositions

MANY_EXPERTS = 1024
"""With more experts than this, they are not all built; a user's class may build them one by one."""

COUNTS = ("num_experts", "shared_experts", "dense_width")
"""Numbers of experts, by the name of their setting."""

OVERFLOWN = 1 << 60
"""Minimum number of elements of a tensor whose size in bytes overflows in torch."""

MODULE_BYTES, PARAMETER_BYTES = 2000, 500
"""Minimum memory of the Python objects of a module and a parameter, measured on CPython 3.11."""

FLOAT = 4
"""Bytes per weight of a newly built model."""


class Bare(NamedTuple):
    """The sizes of a part, or of several.

    Attributes:
        parameters: number of trained weights.
        buffers: number of other stored values.
        objects: minimum bytes of the Python objects.
        kept: minimum number of values that the part keeps for the backward pass: per token, or per
            row of an expert, its output not included.
    """

    parameters: int = 0
    buffers: int = 0
    objects: int = 0
    kept: int = 0


class Footprint(NamedTuple):
    """The sizes of a model, and of what training and sampling store per token.

    Attributes:
        parameters: exact number of trained weights.
        buffers: exact number of other stored values.
        objects: minimum bytes of the Python objects.
        kept: minimum number of values per token that training keeps for the backward pass.
        cached: minimum number of values per token in a cache.
        outer: how many of the trained weights are in the embedding and the output layer.
    """

    parameters: int
    buffers: int
    objects: int
    kept: int
    cached: int = 0
    outer: int = 0

    @property
    def built(self) -> int:
        """Bytes of the newly built model."""
        return (self.parameters + self.buffers) * FLOAT + self.objects


def footprint(model: Architecture) -> Footprint:
    """The footprint of a model with these sizes; nothing is allocated.

    Raises:
        UsageError: from the model's parts, for sizes that do not fit together.
    """
    D, V, L = model.n_embd, model.vocab_size, model.n_layer
    routed, dense = model.routed_layers, L - model.routed_layers
    of_routed = feed_forward(model, Architecture.new_routed) if routed else Bare()
    of_dense = feed_forward(model, Architecture.new_dense) if dense else Bare()
    norm = build_bare(model.new_norm, kept_by_norm)
    attention = build_bare(model.new_attention, partial(kept_by_attention, model))
    parts = [
        (1, build_bare(model.new_positions)),
        (2 * L + 1, norm),
        (L, attention),
        (routed, of_routed),
        (dense, of_dense),
    ]
    outer = V * ((D if model.tied_embeddings else 2 * D) + model.head_bias)
    return Footprint(
        outer + sum(count * part.parameters for count, part in parts),
        sum(count * part.buffers for count, part in parts),
        L * MODULE_BYTES + sum(count * part.objects for count, part in parts),
        (2 * L + 1) * norm.kept
        + L * attention.kept
        + routed * kept_by_routed(model, of_routed.kept)
        + dense * kept_by_dense(model.dense_width, D, of_dense.kept),
        L * 2 * D if is_of(model.attention, CausalSelfAttention) else 0,
        outer,
    )


def feed_forward(model: Architecture, new: Callable[[Architecture], nn.Module]) -> Bare:
    """The sizes of the feed-forward layer that `new` makes.

    For many experts they are extrapolated from two smaller numbers of experts; this is exact if all
    experts have the same size.
    """
    for name in COUNTS:
        beyond = getattr(model, name) - MANY_EXPERTS
        if beyond > 1:
            few, more = (
                feed_forward(with_experts(model, name, count), new)
                for count in (MANY_EXPERTS, MANY_EXPERTS + 1)
            )
            sums = (a + beyond * max(0, b - a) for a, b in zip(few, more, strict=True))
            return Bare(*sums)._replace(kept=few.kept)
    return build_bare(lambda: new(model), kept_by_experts)


def with_experts(model: Architecture, name: str, count: int) -> Architecture:
    """The model with another number of experts of one kind."""
    change: dict[str, Any] = {name: count}
    smaller = replace(model, **change)
    return replace(smaller, top_k=min(model.top_k, smaller.num_experts))


def nothing(part: nn.Module) -> int:
    """What is kept by a part of which nothing is known."""
    return 0


def build_bare(new: Callable[[], nn.Module], kept: Callable[[Any], int] = nothing) -> Bare:
    """Build a part without allocating memory, and return its sizes, with what `kept` says of it."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), Unfilled():
            part = new()
    except UsageError:
        raise
    except Exception as error:
        # A user's class that cannot be built here counts as nothing: it raises its own error when
        # the model is really built.
        return Bare(OVERFLOWN if "overflow" in str(error).lower() else 0)
    modules, parameters = list(part.modules()), list(part.parameters())
    return Bare(
        parameters=sum(tensor.numel() for tensor in parameters),
        buffers=sum(tensor.numel() for tensor in part.buffers()),
        objects=len(modules) * MODULE_BYTES + len(parameters) * PARAMETER_BYTES,
        kept=kept(part),
    )


# -- values that a part keeps for the gradients of its weights; 0 for a user's class


def kept_by_norm(norm: nn.Module) -> int:
    """Input and output."""
    if type(norm) is LayerNorm or type(norm) is RMSNorm:
        return 2 * norm.normalized_shape[0]
    return 0


def kept_by_attention(model: Architecture, attention: nn.Module) -> int:
    """Queries, keys and values; the output of attention; what its dropout keeps."""
    if type(attention) is not CausalSelfAttention:
        return 0
    # The product keeps queries and keys as they enter it, and the values all three as they came.
    changed = is_of(model.positions, RotaryPositions) or kept_by_norm(attention.norm_q)
    copies = 4 + (2 if changed else 0) + (1 if attention.dropout.p > 0 else 0)
    return copies * model.n_embd


def kept_by_experts(layer: nn.Module) -> int:
    """Input and hidden activations of a row, the most of any expert in a layer."""
    return max(
        (row_of(experts) for experts in layer.modules() if isinstance(experts, Experts)), default=0
    )


def row_of(experts: Experts) -> int:
    """Input and hidden activations of a row of an expert."""
    D = experts.n_embd
    if type(experts) is MLPExperts or type(experts) is GatedExperts:
        return D + experts.kept_hidden
    # A user's: the inputs of its widest linear layer and, if that is another one, of the first.
    layers = [layer for layer in experts.modules() if isinstance(layer, StackedLinear)]
    widest = max((layer.in_features for layer in layers), default=0)
    return widest + (D if widest > D else 0)


def kept_by_routed(model: Architecture, row: int) -> int:
    """Input, hidden activations and output of each chosen expert; what shared experts keep."""
    D = model.n_embd
    shared = kept_by_dense(model.shared_experts, D, row)
    # With a capacity, the number of dropped tokens depends on the weights.
    if model.capacity_factor is not None or not is_of(model.feed_forward, MoELayer):
        return shared
    return shared + model.top_k * (row + D)


def kept_by_dense(experts: int, n_embd: int, row: int) -> int:
    """Hidden activations; the input is the norm's output."""
    return experts * max(0, row - n_embd)


def is_of(factory: Any, cls: type) -> bool:
    """Whether a factory makes this very class."""
    return getattr(factory, "func", factory) is cls


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
