"""What the figures of routers cost a training step."""

from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from benchmarks.measure import FLOAT32, Bench, alternate
from benchmarks.models import NUM_EXPERTS, RECIPE, TOP_K
from benchmarks.report import Goal, Result
from benchmarks.trainer import fit, scratch_folder
from benchmarks.training import train_ours
from makemoe.data.datamodule import TextDataModule
from makemoe.model.experts import MLPExperts
from makemoe.training.module import LanguageModel

STEPS = 100
"""Of which two are logged, as the default has it."""

RECIPE_STEPS = 10
NARROW = {"n_embd": 8, "n_head": 1, "experts": partial(MLPExperts, hidden=8)}
"""Routers see the recipe's tokens, layers and experts, and nothing else takes long."""


def router_metrics(bench: Bench) -> list[Result]:
    """Figures of routers, updated each step and logged every 50, as a share of a step."""
    bench.say("figures of routers / none / the recipe's step")
    step = train_ours(RECIPE, "cpu", FLOAT32)

    def steps() -> None:
        for _ in range(RECIPE_STEPS):
            step()

    with scratch_folder() as folder:
        runs = [partial(run, folder, True), partial(run, folder, False), steps]
        figures, none, recipe = map(median, alternate(runs, bench.seconds))
    cost, whole = 1000 * (figures - none) / STEPS, 1000 * recipe / RECIPE_STEPS
    return [
        Result(
            f"figures of routers, {RECIPE}",
            "float32",
            cost,
            "the recipe's step, float32",
            whole,
            goal=Goal("<=", 2, "%"),
            judged=100 * cost / whole,
            longer=True,
            note=f"{100 * cost / whole:.2f} % of a step",
        )
    ]


def run(folder: Path, figures: bool, steps: int = STEPS) -> float:
    """Seconds of training a narrow model of the recipe's routers, with their figures or without."""
    data = TextDataModule("sample", RECIPE.block_size, RECIPE.batch_size)
    model = LanguageModel(
        vocab_size=data.vocab_size,
        block_size=RECIPE.block_size,
        n_layer=RECIPE.n_layer,
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        **NARROW,
    )
    if not figures:
        model.train_router = NoFigures()
    return fit(folder, data, model, steps)


class NoFigures(nn.Module):
    """Stands in for RouterStats, and does nothing."""

    def update(self, routings: Any) -> None: ...

    def compute(self) -> dict[str, Any]:
        return {}

    def reset(self) -> None: ...
