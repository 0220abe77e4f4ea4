"""The measured models: the faithful recipe at two sizes, and text for it."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from makemoe.data.corpus import load_text
from makemoe.data.tokenizer import CharTokenizer
from makemoe.model.experts import MLPExperts
from makemoe.model.init import KaimingNormal
from makemoe.model.router import NoisyTopKRouter
from makemoe.model.transformer import MoETransformer

VOCAB_SIZE, N_EMBD, N_HEAD, HIDDEN, NUM_EXPERTS, TOP_K, DROPOUT = 65, 128, 8, 512, 8, 2, 0.1


class Size(NamedTuple):
    """Windows per step, their length, and the number of blocks."""

    block_size: int
    batch_size: int
    n_layer: int

    @property
    def tokens(self) -> int:
        return self.block_size * self.batch_size

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.block_size} tokens, {self.n_layer} layers"


RECIPE = Size(block_size=32, batch_size=16, n_layer=8)
LARGE = Size(block_size=256, batch_size=64, n_layer=2)
"""Two of the eight layers: a plain step with all eight takes over 10 seconds on two cores."""
TINY = Size(block_size=8, batch_size=2, n_layer=1)
"""To see whether a row runs."""


def settings(size: Size) -> dict[str, Any]:
    """The recipe's model."""
    return {
        "vocab_size": VOCAB_SIZE,
        "block_size": size.block_size,
        "n_layer": size.n_layer,
        "n_head": N_HEAD,
        "n_embd": N_EMBD,
        "num_experts": NUM_EXPERTS,
        "top_k": TOP_K,
        "dropout": DROPOUT,
        "router": NoisyTopKRouter,
        "experts": partial(MLPExperts, hidden=HIDDEN),
        "init": KaimingNormal(),
    }


def ours(size: Size, **changes: Any) -> MoETransformer:
    """The package's model with the recipe's settings: the same weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1337)
        return MoETransformer(**settings(size) | changes)


def batches(size: Size, count: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """Windows of the bundled play and their next tokens: real text loads experts unevenly."""
    text = load_text("sample")
    ids = torch.tensor(CharTokenizer().fit(text).encode(text), dtype=torch.int64)
    generator = torch.Generator().manual_seed(1337)
    shape = (count, size.batch_size, 1)
    starts = torch.randint(len(ids) - size.block_size, shape, generator=generator)
    at_nBT = starts + torch.arange(size.block_size)
    return list(zip(ids[at_nBT].to(device), ids[at_nBT + 1].to(device), strict=True))
