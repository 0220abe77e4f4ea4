"""Times the router metrics within a training step."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Bench
from benchmarks.models import RECIPE, TINY, Size, settings
from benchmarks.processes import together
from benchmarks.report import Goal, Result
from benchmarks.trainer import fit, scratch_folder
from makemoe.data.datamodule import TextDataModule
from makemoe.training.balance import Balancer, SwitchLoss
from makemoe.training.module import LanguageModel

STEPS = 100
"""Number of steps; two are logged, with the default interval."""


def router_metrics(bench: Bench) -> list[Result]:
    """Router metrics, updated every step and logged every 50, as a fraction of the step."""
    bench.say("figures of routers, in the recipe's training")
    size, steps = bench.choose(RECIPE, TINY), bench.choose(STEPS, 2)
    with scratch_folder() as folder:
        alone = run(folder, size, steps)
    bench.say("figures of routers and balance, in two processes")
    both = together(2, __name__, "run_with_ddp", list(size), steps)[0]
    return [
        Result(
            f"{what}, {size}",
            "float32",
            1000 * figures,
            "the step they are part of, float32",
            1000 * whole,
            goal=Goal("<=", 2, "%"),
            judged=100 * figures / whole,
            longer=True,
        )
        for what, (figures, whole) in (
            ("figures of routers", alone),
            ("figures of routers and a balance loss, DDP on 2 processes", both),
        )
    ]


def run_with_ddp(size: Sequence[int], steps: int) -> tuple[float, float]:
    """The same in one of several processes, with a loss that balances the routers.

    Sums over processes count with the time that they wait for each other.
    """
    with scratch_folder() as folder:
        return run(folder, Size(*size), steps, [SwitchLoss()], strategy="ddp", devices=2)


def run(
    folder: Path, size: Size, steps: int, balancers: Sequence[Balancer] = (), **options: Any
) -> tuple[float, float]:
    """Seconds per step of the recipe's model for router metrics, and for the whole step.

    Timed in place, because the difference between a run with them and one without is a few
    percent, less than the difference between two identical runs.

    Args:
        folder: where the run writes.
        size: of the model and its batches.
        steps: how many.
        balancers: whose work counts as well.
        **options: of the Trainer.
    """
    data = TextDataModule("sample", size.block_size, size.batch_size)
    recipe = settings(size) | {"vocab_size": data.vocab_size}
    model = LanguageModel(**recipe, balancers=balancers)
    watch = Stopwatch()
    timed: list[tuple[Any, Sequence[str]]] = [
        (model.train_router, ("update", "compute", "reset")),
        (model.balance, ("raw_losses", "end_step")),
        (model, ("log_figures",)),
    ]
    for part, names in timed:
        for name in names:
            setattr(part, name, watch.on(getattr(part, name)))
    whole = fit(folder, data, model, steps, **options)
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
