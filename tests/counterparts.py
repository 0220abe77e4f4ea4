"""Small models that have counterparts in transformers, and checkpoints of any model."""

from functools import partial
from typing import Any

import torch

from makemoe.checkpoint.describe import described
from makemoe.checkpoint.format import Checkpoint, stamp
from makemoe.data.tokenizer import CharTokenizer, Tokenizer
from makemoe.model.attention import CausalSelfAttention
from makemoe.model.experts import GatedExperts
from makemoe.model.norm import RMSNorm
from makemoe.model.positions import RotaryPositions
from makemoe.model.router import BiasedTopKRouter, TopKRouter
from makemoe.model.transformer import MoETransformer

V, T = 11, 12
VOCABULARY = "\n !abcdeßü😀"

MIXTRAL: dict[str, Any] = {
    "vocab_size": V,
    "block_size": T,
    "n_layer": 3,
    "n_head": 2,
    "n_embd": 16,
    "num_experts": 4,
    "top_k": 2,
    "norm": partial(RMSNorm, eps=0.01),
    "positions": partial(RotaryPositions, base=50.0),
    "attention": partial(CausalSelfAttention, bias=False),
    "experts": partial(GatedExperts, hidden=24),
    "router": partial(TopKRouter, bias=False),
    "head_bias": False,
}
QK_NORM = partial(CausalSelfAttention, qk_norm=partial(RMSNorm, eps=0.01), bias=False)
QWEN3 = MIXTRAL | {"attention": QK_NORM, "dense_layers": [1], "dense_width": 2}
GLM4 = MIXTRAL | {
    "router": partial(BiasedTopKRouter, bias=False),
    "positions": partial(RotaryPositions, base=50.0, share=0.5),
    "shared_experts": 2,
    "dense_layers": [0],
    "dense_width": 3,
}

MODELS: dict[str, dict[str, Any]] = {
    "Mixtral": MIXTRAL,
    "Mixtral, tied": MIXTRAL | {"tied_embeddings": True},
    "Mixtral, squared ReLU": MIXTRAL
    | {"experts": partial(GatedExperts, hidden=20, activation="squared_relu")},
    "Mixtral, all experts": MIXTRAL | {"top_k": 4},
    "Qwen3-MoE": QWEN3,
    "Qwen3-MoE, one expert per token": QWEN3 | {"top_k": 1},
    "Qwen3-MoE, GELU": QWEN3 | {"experts": partial(GatedExperts, hidden=8, activation="gelu")},
    "Qwen3-MoE, dense at both ends, tied": QWEN3
    | {"dense_layers": [0, 2], "tied_embeddings": True},
    "GLM-4-MoE": GLM4,
    "GLM-4-MoE, QK-norm, tied": GLM4 | {"attention": QK_NORM, "tied_embeddings": True},
    "GLM-4-MoE, no dense layer": GLM4 | {"dense_layers": [], "shared_experts": 1},
    "GLM-4-MoE, one expert per token": GLM4 | {"top_k": 1},
    "GLM-4-MoE, whole heads turned": GLM4 | {"positions": partial(RotaryPositions, base=9.0)},
}
NAMES = {
    "Mixtral": "MixtralForCausalLM",
    "Qwen3": "Qwen3MoeForCausalLM",
    "GLM": "Glm4MoeForCausalLM",
}


def name_of(case: str) -> str:
    """The class in transformers that computes a case."""
    return next(name for begins, name in NAMES.items() if case.startswith(begins))


def model_of(parts: dict[str, Any], shift: float = 0.0) -> MoETransformer:
    """A model in evaluation mode whose routing and attention are far from uniform.

    `shift`: how large the shifts are that evaluation adds to the biases of its routers.
    """
    model = MoETransformer(**parts).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for router in model.routers().values():
        if isinstance(router, BiasedTopKRouter):
            router.bias_E.normal_(std=0.3)
            router.eval_shift_E.normal_(std=0.3).mul_(shift)
    return model


def checkpoint_of(
    model: MoETransformer, parts: dict[str, Any], tokenizer: Tokenizer | None = None
) -> Checkpoint:
    """What a run of this model would save, without the state of the run."""
    checkpoint: Checkpoint = {
        "state_dict": {f"net.{name}": tensor for name, tensor in model.state_dict().items()},
        "hyper_parameters": {name: described(value) for name, value in parts.items()},
        "epoch": 0,
        "global_step": 7,
        "pytorch-lightning_version": "2.6.6",
    }
    tokenizer = CharTokenizer(VOCABULARY) if tokenizer is None else tokenizer
    stamp(checkpoint, tokenizer.spec())
    return checkpoint
