"""Qwen3-MoE (arXiv:2505.09388): like Mixtral, with QK-norm and dense layers anywhere."""

from typing import Any

from makemoe.exchange.blueprint import Blueprint
from makemoe.exchange.config import Config
from makemoe.exchange.counterpart import Counterpart, in_widths


class Qwen3Moe(Counterpart):
    """`Qwen3MoeForCausalLM`."""

    name, model_type = "Qwen3MoeForCausalLM", "qwen3_moe"
    eps, base = 1e-6, 1e4

    def lacks(self, blueprint: Blueprint) -> list[str]:
        return [
            *["attention without QK-norm"] * (not blueprint.qk_norm),
            *["sigmoid scores"] * (blueprint.score == "sigmoid"),
            *["shared experts"] * (blueprint.shared_experts > 0),
            *["partly turned heads"] * (blueprint.share != 1),
        ]

    def own_config(self, blueprint: Blueprint) -> dict[str, Any]:
        return {
            "num_experts": blueprint.num_experts,
            "moe_intermediate_size": blueprint.hidden,
            "intermediate_size": blueprint.dense_width * blueprint.hidden,
            "mlp_only_layers": list(blueprint.dense_layers),
            "decoder_sparse_step": 1,
            # The only expert is weighted by its probability among all.
            "norm_topk_prob": blueprint.top_k > 1,
            "attention_bias": False,
            "use_sliding_window": False,
        }

    def own_blueprint(self, config: Config, odd: list[str]) -> dict[str, Any]:
        if config.flag("use_sliding_window", False):
            odd.append("a sliding window")
        if (config.integer("num_experts_per_tok") > 1) != config.flag("norm_topk_prob", False):
            odd.append("weights of experts that are not normalised (norm_topk_prob)")
        step, hidden = (
            config.integer("decoder_sparse_step", default=1),
            config.integer("moe_intermediate_size"),
        )
        named = set(config.integers("mlp_only_layers"))
        dense = tuple(
            layer
            for layer in range(config.integer("num_hidden_layers"))
            if layer in named or step == 0 or (layer + 1) % step
        )
        width = config.integer("intermediate_size", default=hidden)
        return {
            "num_experts": config.integer("num_experts", "num_local_experts"),
            "hidden": hidden,
            "dense_layers": dense,
            "dense_width": in_widths(config, width, hidden, odd) if dense else 1,
            "qk_norm": True,
        }
