"""Models of the newer parts, one or all at once, as arguments of `MoETransformer`."""

from functools import partial
from typing import Any

from makemoe.model.attention import CausalSelfAttention
from makemoe.model.experts import GatedExperts, MLPExperts
from makemoe.model.norm import LayerNorm, RMSNorm
from makemoe.model.positions import RotaryPositions
from makemoe.model.router import TopKRouter

HIDDEN = 24

MODERN: dict[str, Any] = {
    "norm": RMSNorm,
    "positions": RotaryPositions,
    "attention": partial(CausalSelfAttention, qk_norm=RMSNorm, bias=False),
    "experts": partial(GatedExperts, hidden=HIDDEN),
    "shared_experts": 1,
    "dense_layers": [0],
    "dense_width": 2,
    "tied_embeddings": True,
}

ONE_BY_ONE: dict[str, dict[str, Any]] = {
    "RMSNorm": {"norm": RMSNorm},
    "rotary positions": {"positions": RotaryPositions},
    "QK-norm": {"attention": partial(CausalSelfAttention, qk_norm=RMSNorm)},
    "QK-norm with a shift": {"attention": partial(CausalSelfAttention, qk_norm=LayerNorm)},
    "no bias after attention": {"attention": partial(CausalSelfAttention, bias=False)},
    "squared ReLU": {"experts": partial(MLPExperts, activation="squared_relu", bias=False)},
    "fine-grained experts": {"experts": partial(MLPExperts, hidden=4), "num_experts": 16},
    "SwiGLU": {"experts": GatedExperts},
    "SwiGLU with biases": {"experts": partial(GatedExperts, bias=True)},
    "shared experts": {"shared_experts": 2},
    "a dense layer": {"dense_layers": [0], "dense_width": 2},
    "tied embeddings": {"tied_embeddings": True},
    "half of each head turned": {"positions": partial(RotaryPositions, share=0.5)},
    "a gate without a bias": {"router": partial(TopKRouter, bias=False)},
    "no bias of the output layer": {"head_bias": False},
    "tied embeddings without a bias": {"tied_embeddings": True, "head_bias": False},
}

ALL: dict[str, dict[str, Any]] = {**ONE_BY_ONE, "all at once": MODERN}


def activation_of(parts: dict[str, Any]) -> str:
    """The name of the nonlinearity of a model's experts."""
    made = parts.get("experts", MLPExperts)
    usual = "silu" if getattr(made, "func", made) is GatedExperts else "relu"
    return str(getattr(made, "keywords", {}).get("activation", usual))
