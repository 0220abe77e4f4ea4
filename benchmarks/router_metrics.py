"""Times the router metrics within a training step."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Bench
from benchmarks.models import RECIPE, TINY, Size, settings
from benchmarks.report import Goal, Result
from benchmarks.trainer import fit, scratch_folder
from makemoe.data.datamodule import TextDataModule
from makemoe.training.module import LanguageModel

STEPS = 100
"""Number of steps; two are logged, with the default interval."""


def router_metrics(bench: Bench) -> list[Result]:
    """Router metrics, updated every step and logged every 50, as a fraction of the step."""
    bench.say("figures of routers, in the recipe's training")
    size = bench.choose(RECIPE, TINY)
    with scratch_folder() as folder:
        figures, whole = run(folder, size, bench.choose(STEPS, 2))
    return [
        Result(
            f"figures of routers, {size}",
            "float32",
            1000 * figures,
            "the step they are part of, float32",
            1000 * whole,
            goal=Goal("<=", 2, "%"),
            judged=100 * figures / whole,
            longer=True,
        )
    ]


def run(folder: Path, size: Size, steps: int) -> tuple[float, float]:
    """Seconds per step of the recipe's model for router metrics, and for the whole step.

    Timed in place, because the difference between a run with them and one without is a few
    percent, less than the difference between two identical runs.
    """
    data = TextDataModule("sample", size.block_size, size.batch_size)
    model = LanguageModel(**settings(size) | {"vocab_size": data.vocab_size})
    watch = Stopwatch()
    stats = model.train_router
    for name in ("update", "compute", "reset"):
        setattr(stats, name, watch.on(getattr(stats, name)))
    model.log_figures = watch.on(model.log_figures)
    whole = fit(folder, data, model, steps)
    return watch.seconds / steps, whole / steps


class Stopwatch:
    """Seconds spent in functions."""

    seconds = 0.0

    def on(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time counts."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed
