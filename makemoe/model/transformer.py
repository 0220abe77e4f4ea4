"""The sparse MoE transformer: ids in, logits and routings out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from makemoe.errors import UsageError
from makemoe.model.attention import AttentionFactory, CausalSelfAttention, LayerCache, Place
from makemoe.model.backends import Backend, BackendName
from makemoe.model.block import Architecture, Block, FeedForwardFactory
from makemoe.model.budget import check_memory
from makemoe.model.dispatch import DropOrder
from makemoe.model.dropout import Dropout
from makemoe.model.experts import ExpertsFactory, MLPExperts
from makemoe.model.init import GPT2Normal, Initializer
from makemoe.model.moe import MoELayer
from makemoe.model.norm import LayerNorm, NormFactory
from makemoe.model.positions import LearnedPositions, PositionsFactory
from makemoe.model.router import Router, RouterFactory, Routing, TopKRouter


class ParameterCount(NamedTuple):
    """Number of parameters in total, and of those active for one token."""

    total: int
    active: int


class MoETransformer(nn.Module):
    """A decoder-only transformer whose feed-forward layers are sparse mixtures of experts.

    Every part of a block is a class that can be replaced by another.

    Args:
        vocab_size: number of symbols V.
        block_size: longest context, in tokens.
        n_layer: number of blocks.
        n_head: attention heads per block; must divide n_embd.
        n_embd: width of the residual stream.
        num_experts: experts per block, of which a router chooses.
        top_k: experts per token.
        dropout: fraction of the outputs of attention and experts dropped in training.
        attn_dropout: fraction of attention weights dropped in training; null: same as `dropout`.
            Above 0, a CPU cannot use fused attention.
        capacity_factor: in training, an expert takes at most this multiple of the mean load and
            the rest is dropped; null: no limit.
        drop_order: what a full expert keeps: earlier tokens, or larger weights.
        router: chooses experts; a class called with (n_embd, num_experts, top_k).
        experts: a class called with (num_experts, n_embd, dropout).
        init: the class that initialises the weights.
        dispatch: computes the experts; changes results by rounding only.
        norm: a class called with (n_embd).
        positions: a class called with (block_size, n_embd, n_head).
        attention: a class called with (n_embd, n_head, dropout, attn_dropout).
        feed_forward: a class called as `MoELayer` is; not used in dense layers.
        shared_experts: experts that read every token, beside the chosen ones.
        dense_layers: numbers of the layers, from 0, that have no router.
        dense_width: width of a dense layer, in experts.
        tied_embeddings: whether the output layer uses the token embeddings as its weight.
        head_bias: whether the output layer has a bias.
        embd_dropout: fraction of the embeddings dropped in training.
        expert_dropout: fraction of the experts' outputs dropped in training; null: same as
            `dropout`.

    Raises:
        UsageError: for sizes that are invalid or need more memory than there is.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 128,
        n_layer: int = 6,
        n_head: int = 4,
        n_embd: int = 128,
        num_experts: int = 8,
        top_k: int = 2,
        dropout: float = 0.0,
        attn_dropout: float | None = None,
        capacity_factor: float | None = None,
        drop_order: DropOrder = "position",
        router: RouterFactory = TopKRouter,
        experts: ExpertsFactory = MLPExperts,
        init: Initializer | None = None,
        dispatch: BackendName | Backend = "auto",
        norm: NormFactory = LayerNorm,
        positions: PositionsFactory = LearnedPositions,
        attention: AttentionFactory = CausalSelfAttention,
        feed_forward: FeedForwardFactory = MoELayer,
        shared_experts: int = 0,
        dense_layers: Sequence[int] = (),
        dense_width: int = 1,
        tied_embeddings: bool = False,
        head_bias: bool = True,
        embd_dropout: float = 0.0,
        expert_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.architecture = Architecture(
            vocab_size=vocab_size,
            block_size=block_size,
            n_layer=n_layer,
            n_head=n_head,
            n_embd=n_embd,
            num_experts=num_experts,
            top_k=top_k,
            dropout=dropout,
            attn_dropout=dropout if attn_dropout is None else attn_dropout,
            capacity_factor=capacity_factor,
            drop_order=drop_order,
            router=router,
            experts=experts,
            dispatch=dispatch,
            norm=norm,
            positions=positions,
            attention=attention,
            feed_forward=feed_forward,
            shared_experts=shared_experts,
            dense_layers=frozenset(dense_layers),
            dense_width=dense_width,
            tied_embeddings=tied_embeddings,
            head_bias=head_bias,
            embd_dropout=embd_dropout,
            expert_dropout=dropout if expert_dropout is None else expert_dropout,
        )
        check_memory(self.architecture)
        self.vocab_size, self.block_size = vocab_size, block_size
        self.num_experts, self.top_k = num_experts, top_k
        self.n_head, self.n_embd = n_head, n_embd

        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = self.architecture.new_positions()
        self.embd_dropout = Dropout(embd_dropout)
        self.blocks = nn.ModuleList(self.architecture.block(layer) for layer in range(n_layer))
        self.norm = self.architecture.new_norm()
        self.head = nn.Linear(n_embd, vocab_size, head_bias)
        if tied_embeddings:
            self.head.weight = self.token_embedding.weight
        self._check_routers()
        (init or GPT2Normal()).initialize(self)

    def forward(
        self,
        ids_BT: Tensor,
        cache: list[LayerCache] | None = None,
        starts: list[int] | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Compute the logits of every next token.

        Args:
            ids_BT: token ids, int64, T at most block_size.
            cache: keys and values of earlier positions (from `new_cache`), extended in place.
            starts: with a cache, the position of each row's first id; rows may differ.

        Returns:
            logits (B, T, V), and one Routing of the B*T tokens per layer that has a router.
        """
        T, device = ids_BT.shape[1], ids_BT.device
        assert self.block_size >= T, f"{T} tokens do not fit a context of {self.block_size}"
        if cache is None:
            place = Place.whole(T, device)
        else:
            assert starts is not None
            place = Place.after(starts, T, self.block_size, device)
        positions_BT = place.positions_BT
        place = place._replace(turn=self.position_embedding.turn(positions_BT))
        x_BTD = self.position_embedding.add(self.token_embedding(ids_BT), positions_BT)
        x_BTD = self.embd_dropout(x_BTD)
        routings = []
        for i, block in enumerate(self.blocks):
            x_BTD, routing = block(x_BTD, None if cache is None else cache[i], place)
            if routing is not None:
                routings.append(routing)
        return self.head(self.norm(x_BTD)), routings

    def routers(self) -> dict[int, Router]:
        """The routers there are, by the number of their layer, in ascending order.

        A router may be made of other routers; it counts as one.
        """
        found = {
            i: next((part for part in block.modules() if isinstance(part, Router)), None)
            for i, block in enumerate(self.blocks)
        }
        return {i: router for i, router in found.items() if router is not None}

    def _check_routers(self) -> None:
        """Refuse routers of other sizes: counts, metrics and pictures are arrays (L, E)."""
        for layer, router in self.routers().items():
            sizes = {"num_experts": router.num_experts, "top_k": router.top_k}
            for name, size in sizes.items():
                if size != getattr(self, name):
                    raise UsageError(
                        f"{type(router).__name__} of layer {layer} has {name} {size}, but the "
                        f"model has {getattr(self, name)}: all routers of a model have its "
                        f"num_experts and top_k"
                    )

    def new_cache(self, batch_size: int) -> list[LayerCache]:
        """An empty cache of block_size positions for `batch_size` rows, one entry per layer."""
        return [
            block.attention.new_cache(batch_size, self.block_size)
            for block in self.blocks
            if isinstance(block, Block)
        ]

    def count_parameters(self) -> ParameterCount:
        """Parameters in total, and those active for one token: all but the experts not chosen."""
        return ParameterCount(numbers_in(self), self.for_one_token(numbers_in))

    def for_one_token(self, count: Callable[[nn.Module], int]) -> int:
        """What `count` counts in the model, without its share in the experts not chosen."""
        idle = 0
        for layer in self.modules():
            if isinstance(layer, MoELayer):
                E, K = layer.router.num_experts, layer.router.top_k
                in_experts = count(layer.experts)
                idle += in_experts - in_experts * K // E
        return count(self) - idle


def numbers_in(module: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())
