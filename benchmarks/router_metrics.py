"""Times the router metrics within a training step."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.measure import Bench
from benchmarks.models import RECIPE, TINY, Size, settings
from benchmarks.processes import together
from benchmarks.report import Goal, Result
from benchmarks.trainer import fit, scratch_folder
from makemoe.data.datamodule import TextDataModule
from makemoe.training import module
from makemoe.training.balance import Balancer, SwitchLoss
from makemoe.training.module import LanguageModel

STEPS = 400
"""Number of steps; every 50th is logged."""

WARM_UP = 10
"""So many steps, an even number, are left out."""


def router_metrics(bench: Bench) -> list[Result]:
    """Router metrics, updated every step and logged every 50, as a fraction of the step."""
    bench.say("figures of routers, in the recipe's training")
    size, steps = bench.choose(RECIPE, TINY), bench.choose(STEPS, 20)
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
    """The same in one of several processes, with a loss that balances the routers."""
    with scratch_folder() as folder:
        return run(folder, Size(*size), steps, [SwitchLoss()], strategy="ddp", devices=2)


def run(
    folder: Path, size: Size, steps: int, balancers: Sequence[Balancer] = (), **options: Any
) -> tuple[float, float]:
    """Seconds per step of the recipe's model for router metrics and balance, and for a whole step.

    Every second step goes without them. The steps of one run alternate, because the difference is a
    few percent, less than that between two identical runs. What is only done at logged steps is
    timed in place.

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
    steps_with, watch = Alternating(model), Stopwatch()
    timed: list[tuple[Any, Sequence[str]]] = [
        (model.train_router, ("compute", "reset")),
        (model, ("log_figures",)),
    ]
    for part, names in timed:
        for name in names:
            setattr(part, name, watch.on(getattr(part, name)))
    counting = steps_with.at_every_second(module.count_assignments, None)
    with patch.object(module, "count_assignments", counting):
        fit(folder, data, model, steps, **options)
    figures, whole = steps_with.difference()
    return figures + watch.seconds / steps, whole


class Alternating:
    """Leaves out router metrics and balance in every second step of a model, and times all steps.

    Args:
        model: the model; its methods are wrapped.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.begins: list[float] = []
        step, update = model.training_step, model.train_router.update
        losses, end_step = model.balance.raw_losses, model.balance.end_step

        def training_step(*args: Any) -> Any:
            self.begins.append(time.perf_counter())
            return step(*args)

        parts: list[tuple[Any, str, Callable[..., Any]]] = [
            (model, "training_step", training_step),
            (model.train_router, "update", self.at_every_second(update, None)),
            (model.balance, "raw_losses", self.at_every_second(losses, {})),
            (model.balance, "end_step", self.at_every_second(end_step, None)),
        ]
        for part, name, wrapped in parts:
            setattr(part, name, wrapped)

    def at_every_second(self, function: Callable[..., Any], otherwise: Any) -> Callable[..., Any]:
        """A function that does nothing in the steps that go without."""
        return lambda *args, **how: function(*args, **how) if self.goes_with else otherwise

    @property
    def goes_with(self) -> bool:
        """Whether the step that has begun has metrics and balance."""
        return len(self.begins) % 2 == 1

    def difference(self) -> tuple[float, float]:
        """Median seconds: how much longer steps with them are; and such a step."""
        seconds = [end - begin for begin, end in pairwise(self.begins)][WARM_UP:]
        whole, without = median(seconds[::2]), median(seconds[1::2])
        return whole - without, whole


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
