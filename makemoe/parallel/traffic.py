"""What each process sends in a step, by formula; docs/scaling.md explains them, tests count them.

Letters: W processes, R copies of a weight, S parts of a copy, X processes that divide the experts;
P weights outside routed experts, Q in them; N tokens of a process in a batch, A batches per step.
Bytes are the least that a collective can send, per process: a tensor of n bytes is gathered from S
parts with n (S - 1) / S, its sum divided with as many, and a sum given to R with 2 n (R - 1) / R.
"""

from typing import Literal, NamedTuple

from makemoe.model.moe import MoELayer
from makemoe.model.transformer import MoETransformer, numbers_in
from makemoe.parallel.layout import Layout

FLOAT = 4
"""Bytes of a number in which gradients are summed, unless weights have more."""

COUNT = 8
"""Bytes of a count, and of an expert's number."""

FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
"""Bytes of gradients that DDP sums at once: its first bucket, and the others."""

Kind = Literal["gather", "scatter", "reduce", "exchange"]


class Sizes(NamedTuple):
    """What of a model decides what is sent.

    Attributes:
        others: weights outside routed experts, P.
        routed: weights in routed experts, Q.
        blocks: number of blocks.
        routed_layers: number of layers with a router.
        width: numbers of a row that travels, D.
        num_experts: experts per layer, E.
        top_k: experts per token, K.
        told: tensors of a layer that each process tells all others, to drop over capacity: 0; 1,
            its tokens' experts; or 2, their weights too.
        largest: weights of the largest block.
    """

    others: int
    routed: int
    blocks: int
    routed_layers: int
    width: int
    num_experts: int
    top_k: int
    told: int
    largest: int

    @staticmethod
    def of(net: MoETransformer) -> "Sizes":
        """The sizes of a model, whose weights need not be in memory."""
        layers = [part for part in net.modules() if isinstance(part, MoELayer)]
        routed = sum(numbers_in(layer.experts) for layer in layers)
        model = net.architecture
        told = 0 if model.capacity_factor is None else 2 if model.drop_order == "weight" else 1
        return Sizes(
            others=numbers_in(net) - routed,
            routed=routed,
            blocks=len(net.blocks),
            routed_layers=len(layers),
            width=net.n_embd,
            num_experts=net.num_experts,
            top_k=net.top_k,
            told=told,
            largest=max(map(numbers_in, net.blocks)),
        )


class Step(NamedTuple):
    """A step of training, as one process sees it.

    Attributes:
        tokens: in each batch of this process, N.
        batches: accumulated, A.
        weight_bytes: of a number of the weights.
        product_bytes: of a number in a matrix product.
    """

    tokens: int
    batches: int = 1
    weight_bytes: int = FLOAT
    product_bytes: int = FLOAT


class Peers(NamedTuple):
    """Processes that send to each other: `size` of them, with `stride` between their numbers."""

    size: int
    stride: int = 1

    @property
    def others(self) -> float:
        """The share of a whole that the others have, if all have as much."""
        return (self.size - 1) / self.size

    def machines(self, per_machine: int) -> int:
        """On how many machines they are, with so many processes on each."""
        reach = self.size * self.stride
        if reach <= per_machine:
            return 1 if per_machine % reach == 0 else 2  # it may begin on one, and end on the next
        return -(-self.size // max(1, per_machine // self.stride))


class Sent(NamedTuple):
    """What a process sends in a step.

    Attributes:
        what: its purpose.
        kind: the collective.
        nbytes: in all of them together.
        times: how many collectives.
        peers: who takes part.
    """

    what: str
    kind: Kind
    nbytes: float
    times: int
    peers: Peers


def sent_by_ddp(sizes: Sizes, processes: int, step: Step) -> list[Sent]:
    """What is sent if each process has all weights: gradients, summed once per step."""
    everyone = Peers(processes)
    nbytes = step.weight_bytes * (sizes.others + sizes.routed)
    buckets = 1 + max(0, -(-(nbytes - FIRST_BUCKET) // BUCKET))
    return present(
        Sent("gradients", "reduce", 2 * nbytes * everyone.others, buckets, everyone),
        *sent_for_capacity(sizes, everyone, step),
    )


def sent_by_sharded(sizes: Sizes, layout: Layout, step: Step) -> list[Sent]:
    """What is sent in a layout of `makemoe.parallel.Sharded`."""
    copies, parts, divided = layout.sparse
    dense = Peers(layout.replicate, layout.shard), Peers(layout.shard)
    sparse = Peers(copies, parts * divided), Peers(parts, divided)
    blocks = sizes.blocks + 1  # embeddings and output layer are gathered as one
    if layout.experts == 1:
        weights = sent_for_weights("weights", sizes.others + sizes.routed, blocks, *dense, step)
    else:
        weights = [
            *sent_for_weights("weights", sizes.others, blocks, *dense, step),
            *sent_for_weights(
                "experts", sizes.routed / divided, sizes.routed_layers, *sparse, step
            ),
            *sent_to_experts(sizes, Peers(divided), step),
        ]
    everyone = Peers(layout.replicate * layout.shard)
    return present(*weights, *sent_for_capacity(sizes, everyone, step))


def sent_for_weights(
    what: str, numbers: float, groups: int, copies: Peers, parts: Peers, step: Step
) -> list[Sent]:
    """What is sent for weights in parts, of which there are copies.

    They are gathered before the forward and before the backward pass of each batch; their gradients
    are summed once per step.

    Args:
        what: the weights.
        numbers: how many they are.
        groups: how many groups of them are gathered one after another.
        copies: processes with a copy of the same part.
        parts: processes with the parts of a copy.
        step: what is trained on.
    """
    weights = numbers * step.weight_bytes
    gradients = numbers * max(FLOAT, step.weight_bytes)
    passes = 2 * step.batches
    summed = 2 * gradients / parts.size * copies.others
    return [
        Sent(
            f"{what}, gathered", "gather", passes * weights * parts.others, passes * groups, parts
        ),
        Sent(f"{what}' gradients", "scatter", gradients * parts.others, groups, parts),
        Sent(f"{what}' gradients, copies", "reduce", summed, groups, copies),
    ]


def sent_to_experts(sizes: Sizes, divided: Peers, step: Step) -> list[Sent]:
    """Rows to their experts and back, and their gradients, if all experts get as many."""
    layers = sizes.routed_layers * step.batches
    rows = step.tokens * sizes.top_k * sizes.width * step.product_bytes * divided.others
    counts = COUNT * sizes.num_experts * divided.others
    return [
        Sent("tokens", "exchange", 4 * layers * rows, 4 * layers, divided),
        Sent("counts", "exchange", layers * counts, layers, divided),
    ]


def sent_for_capacity(sizes: Sizes, everyone: Peers, step: Step) -> list[Sent]:
    """What all processes must know of all tokens, by which each drops over capacity.

    Each tensor comes after its length.
    """
    if not sizes.told:
        return []
    layers = sizes.routed_layers * step.batches
    per_token = sizes.top_k * (COUNT + FLOAT * (sizes.told - 1))
    own = step.tokens * per_token + COUNT * sizes.told
    nbytes = layers * own * (everyone.size - 1)
    return [Sent("choices, for capacity", "gather", nbytes, 2 * sizes.told * layers, everyone)]


def present(*all_: Sent) -> list[Sent]:
    """Those that are sent at all."""
    return [sent for sent in all_ if sent.nbytes]
