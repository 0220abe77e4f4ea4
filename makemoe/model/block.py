"""One block of the transformer, and the settings it is built from."""

from dataclasses import dataclass

from torch import Tensor, nn

from makemoe.errors import UsageError
from makemoe.model.attention import CausalSelfAttention, LayerCache, Place
from makemoe.model.backends import Backend, BackendName
from makemoe.model.dispatch import DropOrder
from makemoe.model.experts import ExpertsFactory
from makemoe.model.moe import MoELayer
from makemoe.model.router import RouterFactory, Routing
from makemoe.sizes import check_sizes


class Block(nn.Module):
    """Attention, then experts; each has a normalised input and is added to the residual stream."""

    def __init__(self, n_embd: int, attention: CausalSelfAttention, moe: MoELayer) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attention, self.moe = attention, moe

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None, place: Place | None
    ) -> tuple[Tensor, Routing]:
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

    def __post_init__(self) -> None:
        """Refuse invalid sizes."""
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "num_experts", "top_k")
        check_sizes({name: getattr(self, name) for name in sizes})
        for name, share in {"dropout": self.dropout, "attn_dropout": self.attn_dropout}.items():
            if not 0 <= share < 1:
                raise UsageError(f"{name} {share} is out of range: use 0 or more, less than 1")

    def block(self) -> Block:
        """A block with new weights."""
        return Block(
            self.n_embd,
            CausalSelfAttention(self.n_embd, self.n_head, self.dropout, self.attn_dropout),
            MoELayer(
                self.router(self.n_embd, self.num_experts, self.top_k),
                self.experts(self.num_experts, self.n_embd, self.dropout),
                self.capacity_factor,
                self.drop_order,
                self.dispatch,
            ),
        )
