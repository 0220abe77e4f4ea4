"""The sparse MoE transformer: ids in, logits and routings out."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from makemoe.model.attention import LayerCache, Place
from makemoe.model.backends import Backend, BackendName
from makemoe.model.block import Architecture, Block
from makemoe.model.budget import check_memory
from makemoe.model.dispatch import DropOrder
from makemoe.model.experts import ExpertsFactory, MLPExperts
from makemoe.model.init import GPT2Normal, Initializer
from makemoe.model.router import Router, RouterFactory, Routing, TopKRouter


class ParameterCount(NamedTuple):
    """Number of parameters in total, and of those active for one token."""

    total: int
    active: int


class MoETransformer(nn.Module):
    """A decoder-only transformer whose feed-forward layers are sparse mixtures of experts.

    Args:
        vocab_size: number of symbols V.
        block_size: longest context, in tokens.
        n_layer: number of blocks.
        n_head: attention heads per block; must divide n_embd.
        n_embd: width of the residual stream.
        num_experts: experts per block.
        top_k: experts per token.
        dropout: fraction of the outputs of attention and experts dropped in training.
        attn_dropout: fraction of attention weights dropped in training; null: same as `dropout`.
            Above 0, a CPU cannot use fused attention.
        capacity_factor: in training, an expert takes at most this multiple of the mean load and
            the rest is dropped; null: no limit.
        drop_order: what a full expert keeps: the earlier tokens, or the larger weights.
        router: the class that chooses experts, called with (n_embd, num_experts, top_k).
        experts: the class of the experts, called with (num_experts, n_embd, dropout).
        init: the class that initialises the weights.
        dispatch: backend that computes the experts; changes results by rounding only.

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
        )
        check_memory(self.architecture)
        self.vocab_size, self.block_size = vocab_size, block_size
        self.num_experts, self.top_k = num_experts, top_k
        self.n_head, self.n_embd = n_head, n_embd

        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList(self.architecture.block() for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size)
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
            logits (B, T, V), and one Routing of the B*T tokens per layer.
        """
        T = ids_BT.shape[1]
        assert self.block_size >= T, f"{T} tokens do not fit a context of {self.block_size}"
        place = None
        if cache is None:
            positions = torch.arange(T, device=ids_BT.device)
        else:
            assert starts is not None
            place = Place.after(starts, T, self.block_size, ids_BT.device)
            positions = place.positions_BT
        x_BTD = self.token_embedding(ids_BT) + self.position_embedding(positions)
        routings = []
        for i, block in enumerate(self.blocks):
            x_BTD, routing = block(x_BTD, None if cache is None else cache[i], place)
            routings.append(routing)
        return self.head(self.norm(x_BTD)), routings

    def routers(self) -> list[Router]:
        """The router of each layer."""
        return [block.moe.router for block in self.blocks if isinstance(block, Block)]

    def new_cache(self, batch_size: int) -> list[LayerCache]:
        """An empty cache of block_size positions for `batch_size` rows, one entry per layer."""
        like = self.head.weight
        shape = (batch_size, self.n_head, self.block_size, self.n_embd // self.n_head)
        return [LayerCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.blocks]

    def count_parameters(self) -> ParameterCount:
        """Parameters in total, and those active for one token: K of E experts and all others."""
        total = sum(p.numel() for p in self.parameters())
        in_experts = sum(
            p.numel()
            for block in self.blocks
            if isinstance(block, Block)
            for p in block.moe.experts.parameters()
        )
        active = total - in_experts + in_experts * self.top_k // self.num_experts
        return ParameterCount(total, active)
