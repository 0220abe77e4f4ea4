"""Mixtral (arXiv:2401.04088): a router in every layer, with a softmax over the chosen experts."""

from typing import Any

from makemoe.exchange.blueprint import Blueprint
from makemoe.exchange.config import Config
from makemoe.exchange.counterpart import Counterpart


class Mixtral(Counterpart):
    """`MixtralForCausalLM`."""

    name, model_type = "MixtralForCausalLM", "mixtral"
    eps, base = 1e-5, 1e6
    moe, of_expert = "block_sparse_moe", ("w1", "w3", "w2")

    def lacks(self, blueprint: Blueprint) -> list[str]:
        return [
            *["QK-norm"] * blueprint.qk_norm,
            *["sigmoid scores"] * (blueprint.score == "sigmoid"),
            *["shared experts"] * (blueprint.shared_experts > 0),
            *["dense layers"] * (len(blueprint.dense_layers) > 0),
            *["partly turned heads"] * (blueprint.share != 1),
            # Its softmax over one expert is 1.
            *["top_k 1"] * (blueprint.top_k == 1),
        ]

    def own_config(self, blueprint: Blueprint) -> dict[str, Any]:
        return {
            "num_local_experts": blueprint.num_experts,
            "intermediate_size": blueprint.hidden,
            "sliding_window": None,
        }

    def own_blueprint(self, config: Config, odd: list[str]) -> dict[str, Any]:
        window = config.integer("sliding_window", default=0)
        if 0 < window < config.integer("max_position_embeddings"):
            odd.append(f"a sliding window of {window} tokens")
        if config.integer("num_experts_per_tok") == 1:
            odd.append("one expert per token, of weight 1")
        return {
            "num_experts": config.integer("num_local_experts"),
            "hidden": config.integer("intermediate_size"),
        }
