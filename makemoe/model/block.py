"""One block of the transformer, and the settings it is built from."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from makemoe.errors import UsageError
from makemoe.model.attention import Attention, AttentionFactory, LayerCache, Place
from makemoe.model.backends import Backend, BackendName
from makemoe.model.dispatch import DropOrder
from makemoe.model.experts import Experts, ExpertsFactory
from makemoe.model.feed_forward import DenseLayer, FeedForward, SharedExperts
from makemoe.model.norm import Norm, NormFactory
from makemoe.model.positions import Positions, PositionsFactory
from makemoe.model.router import Router, RouterFactory, Routing
from makemoe.sizes import check_sizes

FeedForwardFactory = Callable[
    [Router, Experts, float | None, DropOrder, BackendName | Backend],
    FeedForward,
]
"""Called with a layer's new router and experts, and the settings of `MoELayer`."""


class Block(nn.Module):
    """Attention, then feed-forward; each has a normalised input and a residual connection.

    The feed-forward layer is named `moe` in checkpoints, also where it is dense.
    """

    def __init__(
        self, norm_1: Norm, norm_2: Norm, attention: Attention, feed_forward: FeedForward
    ) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = norm_1, norm_2
        self.attention, self.moe = attention, feed_forward

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None, place: Place | None
    ) -> tuple[Tensor, Routing | None]:
        x_BTD = x_BTD + self.attention(self.norm_1(x_BTD), cache, place)
        y_BTD, routing = self.moe(self.norm_2(x_BTD))
        return x_BTD + y_BTD, routing


@dataclass(frozen=True)
class Architecture:
    """Sizes and parts of a `MoETransformer`; the fields are its arguments.

    Raises:
        UsageError: for invalid sizes.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    num_experts: int
    top_k: int
    dropout: float
    attn_dropout: float
    capacity_factor: float | None
    drop_order: DropOrder
    router: RouterFactory
    experts: ExpertsFactory
    dispatch: BackendName | Backend
    norm: NormFactory
    positions: PositionsFactory
    attention: AttentionFactory
    feed_forward: FeedForwardFactory
    shared_experts: int
    dense_layers: frozenset[int]
    dense_width: int
    tied_embeddings: bool
    head_bias: bool
    embd_dropout: float
    expert_dropout: float

    def __post_init__(self) -> None:
        """Refuse invalid sizes."""
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "num_experts", "top_k")
        check_sizes({name: getattr(self, name) for name in (*sizes, "dense_width")})
        for name in ("dropout", "attn_dropout", "embd_dropout", "expert_dropout"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise UsageError(f"{name} {share} is out of range: use 0 or more, less than 1")
        if self.shared_experts < 0:
            raise UsageError(f"shared_experts {self.shared_experts} is negative: use 0 or more")
        check_sizes({"shared_experts": self.shared_experts or 1})
        for layer in sorted(self.dense_layers):
            if not 0 <= layer < self.n_layer:
                raise UsageError(
                    f"dense_layers {layer}: no such layer; give numbers from 0 to "
                    f"{self.n_layer - 1}"
                )

    @property
    def routed_layers(self) -> int:
        """Number of layers with a router."""
        return self.n_layer - len(self.dense_layers)

    def block(self, layer: int) -> Block:
        """The block of a layer, with new weights."""
        return Block(
            self.new_norm(),
            self.new_norm(),
            self.new_attention(),
            self.new_dense() if layer in self.dense_layers else self.new_routed(),
        )

    def new_norm(self) -> Norm:
        """A norm."""
        return self.norm(self.n_embd)

    def new_positions(self) -> Positions:
        """The positions of the whole model."""
        return self.positions(self.block_size, self.n_embd, self.n_head)

    def new_attention(self) -> Attention:
        """The attention of a layer."""
        return self.attention(self.n_embd, self.n_head, self.dropout, self.attn_dropout)

    def new_dense(self) -> DenseLayer:
        """The feed-forward layer of a dense layer."""
        return DenseLayer(self.experts(self.dense_width, self.n_embd, self.expert_dropout))

    def new_routed(self) -> FeedForward:
        """The feed-forward layer of any other layer."""
        routed = self.feed_forward(
            self.router(self.n_embd, self.num_experts, self.top_k),
            self.experts(self.num_experts, self.n_embd, self.expert_dropout),
            self.capacity_factor,
            self.drop_order,
            self.dispatch,
        )
        if not self.shared_experts:
            return routed
        shared = self.experts(self.shared_experts, self.n_embd, self.expert_dropout)
        return SharedExperts(routed, DenseLayer(shared))
