"""GLM-4-MoE (arXiv:2508.06471): sigmoid scores, a bias for the choice, and shared experts.

Its first layers are dense. QK-norm is optional, and rotary positions may turn a part of each head.
"""

from typing import Any

from makemoe.exchange.blueprint import Blueprint
from makemoe.exchange.config import Config
from makemoe.exchange.counterpart import Counterpart, in_widths


class Glm4Moe(Counterpart):
    """`Glm4MoeForCausalLM`."""

    name, model_type = "Glm4MoeForCausalLM", "glm4_moe"
    eps, base = 1e-5, 1e4

    def lacks(self, blueprint: Blueprint) -> list[str]:
        first = tuple(range(len(blueprint.dense_layers)))
        return [
            *["softmax scores"] * (blueprint.score == "softmax"),
            *["layers without a shared expert"] * (not blueprint.shared_experts),
            *["dense layers after others"] * (blueprint.dense_layers != first),
            # Its router sums the two best of a group of experts.
            *["one expert in all"] * (blueprint.num_experts == 1),
        ]

    def own_config(self, blueprint: Blueprint) -> dict[str, Any]:
        return {
            "n_routed_experts": blueprint.num_experts,
            "n_shared_experts": blueprint.shared_experts,
            "moe_intermediate_size": blueprint.hidden,
            "intermediate_size": blueprint.dense_width * blueprint.hidden,
            "first_k_dense_replace": len(blueprint.dense_layers),
            "partial_rotary_factor": blueprint.share,
            "use_qk_norm": blueprint.qk_norm,
            # The only expert is weighted by its score.
            "norm_topk_prob": blueprint.top_k > 1,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
            "attention_bias": False,
            "num_nextn_predict_layers": 0,
        }

    def own_blueprint(self, config: Config, odd: list[str]) -> dict[str, Any]:
        if config.integer("n_group", default=1) != 1:
            odd.append("groups of experts (n_group)")
        if (factor := config.number("routed_scaling_factor", 1.0)) != 1:
            odd.append(f"a routed_scaling_factor of {factor:g}")
        if (config.integer("num_experts_per_tok") > 1) != config.flag("norm_topk_prob", True):
            odd.append("weights of experts that are not normalised (norm_topk_prob)")
        hidden = config.integer("moe_intermediate_size")
        dense = config.integer("first_k_dense_replace", default=1)
        layers = tuple(range(min(dense, config.integer("num_hidden_layers"))))
        width = config.integer("intermediate_size", default=hidden)
        rope = config.section("rope_parameters", "rope_scaling")
        share = config.number("partial_rotary_factor", 0.5)
        return {
            "num_experts": config.integer("n_routed_experts", "num_local_experts"),
            "hidden": hidden,
            "shared_experts": config.integer("n_shared_experts", default=1),
            "dense_layers": layers,
            "dense_width": in_widths(config, width, hidden, odd) if layers else 1,
            "qk_norm": config.flag("use_qk_norm", False),
            "score": "sigmoid",
            "share": rope.number("partial_rotary_factor", share),
        }
