"""What each process stores while it trains, by formula; docs/scaling.md compares it with runs."""

from typing import NamedTuple

from makemoe.parallel.layout import Layout
from makemoe.parallel.traffic import FLOAT, Sizes, Step

SENT_TOO = 3
"""How often a block in parts exists for a moment: gathered, its gradients, and what is sent."""


class Kept(NamedTuple):
    """What is stored beside weights and gradients.

    Attributes:
        moments: numbers that the optimizer keeps per weight.
        outer: weights of the embedding and the output layer.
        outer_moments: numbers that the optimizer keeps per weight of these.
        averages: whether an average of the weights is kept.
        activations: bytes that a batch keeps for its backward pass.
        several: whether there are several processes.
    """

    moments: int
    outer: int
    outer_moments: int
    averages: bool
    activations: int
    several: bool = True


def stored(sizes: Sizes, layout: Layout | None, step: Step, kept: Kept) -> dict[str, int]:
    """Bytes per process at the end of a forward pass, by purpose.

    Args:
        sizes: of the model.
        layout: who has which part; None: all weights are in each process.
        step: what is trained on.
        kept: what else is stored.
    """
    copy, of_experts, divided = 1, 1, 1
    if layout is not None:
        copy, divided = layout.shard, layout.experts
        of_experts = layout.sparse[1] * layout.sparse[2]
    others, routed = -(-sizes.others // copy), -(-sizes.routed // of_experts)
    own = others + routed
    outer = -(-kept.outer // copy)
    moments = (own - outer) * kept.moments + outer * kept.outer_moments
    # Autocast keeps what a product used for the backward pass, where that is not the weight itself.
    casts = step.product_bytes < step.weight_bytes
    at_once = sizes.others + sizes.routed // divided
    found = {
        "weights": own * step.weight_bytes,
        "gradients": own * step.weight_bytes,
        "optimizer state": moments * step.weight_bytes,
        "average": own * FLOAT if kept.averages else 0,
        "buckets": own * step.weight_bytes if layout is None and kept.several else 0,
        "gathered": gathered(sizes, layout) * step.weight_bytes if layout is not None else 0,
        "copies for products": at_once * step.product_bytes if casts else 0,
        "activations": kept.activations,
    }
    return {name: nbytes for name, nbytes in found.items() if nbytes}


def gathered(sizes: Sizes, layout: Layout) -> int:
    """Numbers of a block that exist for a moment: its weights, their gradients, what is sent."""
    in_experts = sizes.routed // sizes.routed_layers if sizes.routed_layers else 0
    if layout.experts == 1:
        groups = [(sizes.largest, layout.shard)]
    else:
        groups = [
            (sizes.largest - in_experts, layout.shard),
            (in_experts // layout.experts, layout.sparse[1]),
        ]
    return sum(numbers * (SENT_TOO if parts > 1 else 1) for numbers, parts in groups)
