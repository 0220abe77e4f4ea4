"""An architecture of transformers that computes what some models of makemoe do.

A new one is a subclass of `Counterpart` in its own file, listed in `makemoe.exchange.known`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from makemoe.errors import CheckpointError
from makemoe.exchange.blueprint import Blueprint
from makemoe.exchange.config import Config
from makemoe.exchange.weights import (
    Weight,
    as_one_in,
    as_one_out,
    of_each_expert,
    queries_keys_values,
    same,
)

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "relu": "relu", "squared_relu": "relu2"}
"""The name of each activation in transformers."""


MOST_LAYERS = 10_000


class Found(NamedTuple):
    """What a config.json describes.

    Attributes:
        blueprint: what the model computes.
        key_value_heads: heads of keys and values, which several heads of queries may share.
        extra_layers: layers after the last, which predict several tokens at once; not used here.
        odd: in words, what it has that makemoe does not.
    """

    blueprint: Blueprint
    key_value_heads: int
    extra_layers: int
    odd: list[str]


class Counterpart(ABC):
    """Base of all architectures; the attributes say what differs between them.

    Attributes:
        name: the class of the model in transformers.
        model_type: the short name of the architecture.
        eps: of norms, where a config.json does not say.
        base: of rotary positions, where it does not say.
        moe: name of the layer after attention.
        of_expert: names of an expert's layers: the gate, what it multiplies, the output.
    """

    name: ClassVar[str]
    model_type: ClassVar[str]
    eps: ClassVar[float]
    base: ClassVar[float]
    moe: ClassVar[str] = "mlp"
    of_expert: ClassVar[tuple[str, str, str]] = ("gate_proj", "up_proj", "down_proj")

    @abstractmethod
    def lacks(self, blueprint: Blueprint) -> list[str]:
        """In words, what a blueprint has that this architecture does not compute."""

    @abstractmethod
    def own_config(self, blueprint: Blueprint) -> dict[str, Any]:
        """The settings of a config.json that only this architecture has."""

    @abstractmethod
    def own_blueprint(self, config: Config, odd: list[str]) -> dict[str, Any]:
        """The fields of the blueprint that `own_config` writes; adds to what is odd."""

    def config(self, blueprint: Blueprint) -> dict[str, Any]:
        """A config.json without the tokens that have a meaning of their own."""
        rope = {"rope_type": "default", "rope_theta": blueprint.base}
        if blueprint.share != 1:
            rope["partial_rotary_factor"] = blueprint.share
        return {
            "architectures": [self.name],
            "model_type": self.model_type,
            "vocab_size": blueprint.vocab_size,
            "max_position_embeddings": blueprint.block_size,
            "num_hidden_layers": blueprint.n_layer,
            "num_attention_heads": blueprint.n_head,
            "num_key_value_heads": blueprint.n_head,
            "head_dim": blueprint.head_size,
            "hidden_size": blueprint.n_embd,
            "num_experts_per_tok": blueprint.top_k,
            "hidden_act": ACTIVATIONS[blueprint.activation],
            "rms_norm_eps": blueprint.eps,
            "rope_parameters": rope,
            "rope_theta": blueprint.base,  # for releases before 5
            "tie_word_embeddings": blueprint.tied_embeddings,
            "attention_dropout": 0.0,
            "use_cache": True,
            **self.own_config(blueprint),
        }

    def found(self, config: Config) -> Found:
        """What a config.json describes.

        Raises:
            CheckpointError: for settings that are missing or of the wrong kind.
        """
        odd: list[str] = []
        rope = config.section("rope_parameters", "rope_scaling")
        kind = rope.word("rope_type" if rope.has("rope_type") else "type", "default")
        if kind != "default":
            odd.append(f"rotary positions of the type {kind!r:.30}")
        n_head, n_embd = config.integer("num_attention_heads"), config.integer("hidden_size")
        heads = config.integer("num_key_value_heads", default=n_head)
        if not heads or not n_head or n_head % heads or n_embd % n_head:
            odd.append(f"{n_head} heads, {heads} of keys and values, for a width of {n_embd}")
        elif (size := config.integer("head_dim", default=n_embd // n_head)) * n_head != n_embd:
            odd.append(f"{n_head} heads of {size}, which are not its width of {n_embd}")
        activation = config.word("hidden_act", "silu")
        named = next((k for k, v in ACTIVATIONS.items() if v == activation), None)
        if named is None:
            odd.append(f"the activation {activation!r:.30}")
        if config.flag("attention_bias", False):
            odd.append("biases of attention (attention_bias)")
        if (layers := config.integer("num_hidden_layers")) > MOST_LAYERS:
            raise CheckpointError(
                f"{config.path}: num_hidden_layers {layers} is more than any model"
            )
        own = self.own_blueprint(config, odd)
        if not own["hidden"]:
            odd.append("experts of width 0")
        top = config.number("rope_theta", self.base)
        blueprint = Blueprint(
            vocab_size=config.integer("vocab_size"),
            block_size=config.integer("max_position_embeddings"),
            n_layer=layers,
            n_head=n_head,
            n_embd=n_embd,
            top_k=config.integer("num_experts_per_tok"),
            activation=named or "silu",
            eps=config.number("rms_norm_eps", self.eps),
            base=rope.number("rope_theta", top),
            tied_embeddings=config.flag("tie_word_embeddings", False),
            **own,
        )
        extra = config.integer("num_nextn_predict_layers", "num_mtp_layers", default=0)
        return Found(blueprint, heads, min(extra, MOST_LAYERS), odd)

    def weights(self, blueprint: Blueprint, key_value_heads: int) -> Iterator[Weight]:
        """Yield all weights, and the tensors that hold them."""
        V, D = blueprint.vocab_size, blueprint.n_embd
        yield same("token_embedding.weight", "model.embed_tokens.weight", V, D)
        for layer in range(blueprint.n_layer):
            yield from self.weights_of(layer, blueprint, key_value_heads)
        yield same("norm.weight", "model.norm.weight", D)
        if not blueprint.tied_embeddings:
            yield same("head.weight", "lm_head.weight", V, D)

    def weights_of(
        self, layer: int, blueprint: Blueprint, key_value_heads: int
    ) -> Iterator[Weight]:
        """Yield the weights of a layer."""
        D, d, E = blueprint.n_embd, blueprint.head_size, blueprint.num_experts
        here, there = f"blocks.{layer}", f"model.layers.{layer}"
        attention = f"{there}.self_attn"
        yield same(f"{here}.norm_1.weight", f"{there}.input_layernorm.weight", D)
        yield queries_keys_values(
            f"{here}.attention.qkv.weight",
            [f"{attention}.{name}_proj.weight" for name in "qkv"],
            D,
            blueprint.n_head,
            key_value_heads,
        )
        yield same(f"{here}.attention.proj.weight", f"{attention}.o_proj.weight", D, D)
        if blueprint.qk_norm:
            for name in "qk":
                weight = f"{name}_norm.weight"
                yield same(f"{here}.attention.norm_{name}.weight", f"{attention}.{weight}", d)
        yield same(f"{here}.norm_2.weight", f"{there}.post_attention_layernorm.weight", D)
        here, there = f"{here}.moe", f"{there}.{self.moe}"
        if layer in blueprint.dense_layers:
            yield from self.one_layer(here, there, blueprint.dense_width, blueprint)
            return
        if blueprint.shared_experts:
            shared = f"{there}.shared_experts"
            yield from self.one_layer(f"{here}.shared", shared, blueprint.shared_experts, blueprint)
            here = f"{here}.routed"
        yield same(f"{here}.router.gate.weight", f"{there}.gate.weight", E, D)
        if blueprint.score == "sigmoid":
            yield same(f"{here}.router.bias_E", f"{there}.gate.e_score_correction_bias", E)
        for name, of_expert in zip(("gate", "in", "out"), self.of_expert, strict=True):
            inputs, outputs = (D, blueprint.hidden) if name != "out" else (blueprint.hidden, D)
            tensors = [f"{there}.experts.{e}.{of_expert}.weight" for e in range(E)]
            yield of_each_expert(f"{here}.experts.fc_{name}.weight", tensors, inputs, outputs)

    def one_layer(
        self, here: str, there: str, experts: int, blueprint: Blueprint
    ) -> Iterator[Weight]:
        """Yield the weights of experts that read every token, which are one layer there."""
        sizes = experts, blueprint.n_embd, blueprint.hidden
        for name, make in (("gate", as_one_in), ("in", as_one_in), ("out", as_one_out)):
            tensor = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}[name]
            yield make(f"{here}.experts.fc_{name}.weight", f"{there}.{tensor}.weight", *sizes)


def in_widths(config: Config, width: int, hidden: int, odd: list[str]) -> int:
    """A width as a multiple of that of an expert."""
    if not hidden or width % hidden or not width:
        odd.append(
            f"dense layers of width {width}, which is no multiple of {hidden}, that of an expert"
        )
        return 1
    return width // hidden
