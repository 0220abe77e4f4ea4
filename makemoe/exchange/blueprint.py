"""What a model computes, in plain values: what makemoe and transformers have in common."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from makemoe.model.attention import Attention, CausalSelfAttention
from makemoe.model.block import Block
from makemoe.model.experts import ACTIVATIONS, Experts, GatedExperts
from makemoe.model.feed_forward import DenseLayer, FeedForward, SharedExperts
from makemoe.model.moe import MoELayer
from makemoe.model.norm import Norm, RMSNorm
from makemoe.model.positions import RotaryPositions
from makemoe.model.router import BiasedTopKRouter, TopKRouter
from makemoe.model.transformer import MoETransformer

ROUTERS = TopKRouter, BiasedTopKRouter


@dataclass(frozen=True)
class Blueprint:
    """A decoder with RMSNorm, rotary positions, gated experts and no biases.

    Attributes:
        vocab_size: number of symbols V.
        block_size: longest context, in tokens.
        n_layer: number of blocks.
        n_head: attention heads, of size n_embd / n_head.
        n_embd: width of the residual stream.
        num_experts: experts of a layer with a router.
        top_k: experts per token.
        hidden: width of an expert.
        activation: nonlinearity of the experts' gates, by its name in makemoe.
        eps: of all norms.
        base: of rotary positions.
        share: share of each head that rotary positions turn.
        qk_norm: whether queries and keys are normalised.
        score: how the router scores experts; `sigmoid` has a bias that affects the choice only.
        shared_experts: experts that read every token.
        dense_layers: layers without a router.
        dense_width: width of those, in experts.
        tied_embeddings: whether the output layer uses the token embeddings.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    num_experts: int
    top_k: int
    hidden: int
    activation: str
    eps: float
    base: float
    share: float = 1.0
    qk_norm: bool = False
    score: Literal["softmax", "sigmoid"] = "softmax"
    shared_experts: int = 0
    dense_layers: tuple[int, ...] = ()
    dense_width: int = 1
    tied_embeddings: bool = False

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return self.n_embd // self.n_head

    def settings(self) -> dict[str, Any]:
        """The arguments of the `MoETransformer`, as a checkpoint holds them."""
        norm = part(RMSNorm, eps=self.eps)
        router = part(TopKRouter, bias=False)
        if self.score == "sigmoid":
            router = part(BiasedTopKRouter, score="sigmoid", bias=False)
        return {
            "vocab_size": self.vocab_size,
            "block_size": self.block_size,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_embd": self.n_embd,
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "norm": norm,
            "positions": part(RotaryPositions, base=self.base, share=self.share),
            "attention": part(
                CausalSelfAttention, qk_norm=norm if self.qk_norm else None, bias=False
            ),
            "experts": part(
                GatedExperts, hidden=self.hidden, activation=self.activation, bias=False
            ),
            "router": router,
            "shared_experts": self.shared_experts,
            "dense_layers": list(self.dense_layers),
            "dense_width": self.dense_width,
            "tied_embeddings": self.tied_embeddings,
            "head_bias": False,
        }


def part(cls: type, **arguments: Any) -> dict[str, Any]:
    """A class and its arguments, as a checkpoint holds them."""
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}


def blueprint_of(model: MoETransformer) -> tuple[Blueprint, list[str]]:
    """What a model computes, and in words the parts for which a blueprint has no room."""
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    architecture, positions = model.architecture, model.position_embedding
    experts = modules(model, Experts)
    norms = modules(model, Norm)
    routers = list(model.routers().values())
    attentions = modules(model, Attention)
    named = [
        *of_other_kinds(norms, RMSNorm),
        *of_other_kinds([positions], RotaryPositions),
        *of_other_kinds(attentions, CausalSelfAttention),
        *of_other_kinds(experts, GatedExperts),
        *of_other_kinds(routers, *ROUTERS),
        *of_other_kinds(feed_forwards(blocks), MoELayer, DenseLayer),
        *odd_arguments(model),
    ]
    gated = next((one for one in experts if isinstance(one, GatedExperts)), None)
    rotary = positions if isinstance(positions, RotaryPositions) else None
    blueprint = Blueprint(
        vocab_size=model.vocab_size,
        block_size=model.block_size,
        n_layer=len(blocks),
        n_head=model.n_head,
        n_embd=model.n_embd,
        num_experts=model.num_experts,
        top_k=model.top_k,
        hidden=0 if gated is None else gated.hidden,
        activation="silu" if gated is None else name_of_activation(gated),
        eps=next((one.eps or 0.0 for one in norms if isinstance(one, RMSNorm)), 0.0),
        base=0.0 if rotary is None else rotary.base,
        share=1.0 if rotary is None else rotary.share,
        qk_norm=any(
            isinstance(one, CausalSelfAttention) and isinstance(one.norm_q, Norm)
            for one in attentions
        ),
        score="sigmoid" if any(type(one) is BiasedTopKRouter for one in routers) else "softmax",
        shared_experts=architecture.shared_experts,
        dense_layers=tuple(sorted(architecture.dense_layers)),
        dense_width=architecture.dense_width if architecture.dense_layers else 1,
        tied_embeddings=architecture.tied_embeddings,
    )
    return blueprint, list(dict.fromkeys(named))


def modules(model: nn.Module, kind: type) -> list[Any]:
    """All parts of a model of one kind."""
    return [module for module in model.modules() if isinstance(module, kind)]


def feed_forwards(blocks: list[Block]) -> list[FeedForward]:
    """The layers after attention; of shared experts, both parts."""
    found: list[FeedForward] = []
    for block in blocks:
        layer = block.moe
        found += [layer.routed, layer.shared] if type(layer) is SharedExperts else [layer]
    return found


def of_other_kinds(parts: list[Any], *kinds: type) -> Iterator[str]:
    """The classes of the parts that are none of these very classes."""
    return (type(one).__name__ for one in parts if type(one) not in kinds)


def odd_arguments(model: MoETransformer) -> Iterator[str]:
    """Arguments of known parts for which a blueprint has no room."""
    routers = [one for one in modules(model, TopKRouter) if type(one) in ROUTERS]
    biases: dict[str, list[Any]] = {
        "the bias of attention": [one.proj for one in modules(model, CausalSelfAttention)],
        "biases of experts": [one.fc_in for one in modules(model, GatedExperts)],
        "the bias of the gate": [one.gate for one in routers],
        "the bias of the output layer": [model.head],
    }
    for words, layers in biases.items():
        if any(layer.bias is not None for layer in layers):
            yield words
    if any(isinstance(one, BiasedTopKRouter) and one.score != "sigmoid" for one in routers):
        yield "softmax scores with a bias for the choice"
    eps = sorted({one.eps for one in modules(model, RMSNorm) if one.eps is not None})
    if len(eps) > 1:
        yield f"norms with several eps ({', '.join(map(str, eps))})"


def name_of_activation(experts: GatedExperts) -> str:
    """The name of the nonlinearity of experts."""
    return next(name for name, one in ACTIVATIONS.items() if one.apply is experts.activation)
