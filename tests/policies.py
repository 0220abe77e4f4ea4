"""Policies of parameter groups for tests."""

from collections.abc import Sequence
from typing import Any

from makemoe.training.param_groups import ParamGroups, Weight


class MatrixMomentum(ParamGroups):
    """Momentum for matrices only."""

    def divide(self, weights: Sequence[Weight]) -> list[dict[str, Any]]:
        matrices = [weight.parameter for weight in weights if weight.is_matrix]
        others = [weight.parameter for weight in weights if not weight.is_matrix]
        return [{"params": others}, {"params": matrices, "momentum": 0.9}]
