"""How long steps and validations of a run take, measured on a few."""

import time
from statistics import median
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from makemoe.cli.sizes import count_processes
from makemoe.cli.training import TrainingCLI
from makemoe.data.windows import ConsecutiveWindows
from makemoe.errors import UsageError
from makemoe.training.steps import count_steps

STEPS, BATCHES = 12, 4
"""How many steps, and batches of a validation, are measured at most."""

MOST_S = 3.0
"""How long to measure each, in seconds, once there are two."""


class Measured(NamedTuple):
    """Seconds per step and per validation."""

    step: float
    validation: float


class Enough(Exception):
    """Ends a measurement."""


class Stopwatch(Callback):
    """Notes how long each batch takes, with what is done between two."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.at: float | None = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.note(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.note(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at = time.perf_counter()

    def note(self, trainer: Trainer) -> None:
        """Note the time since the last batch."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        assert self.at is not None
        self.seconds.append(now - self.at)
        self.at = now
        if len(self.seconds) > 2 and sum(self.seconds) > MOST_S:
            raise Enough

    def typical(self) -> float:
        """The time of a batch, without the first one, which prepares the others."""
        return median(self.seconds[1:] or self.seconds)


def measure(cli: TrainingCLI) -> Measured | None:
    """Train and validate a few batches of a new run, whose model is then used up.

    Returns None if it cannot be measured: with several processes, or if the run fails.

    Raises:
        UsageError: for settings that Lightning refuses when training begins.
    """
    trainer = cli._get(cli.config_init, "trainer")
    if count_processes(trainer) > 1:
        return None
    try:
        step = timed(cli, "fit", max_steps=STEPS, min_steps=None, limit_val_batches=0)
        batch = timed(cli, "validate", limit_val_batches=BATCHES)
    except MisconfigurationException as error:
        raise UsageError(f"--trainer: {' '.join(str(error).split())}") from error
    except UsageError:
        raise
    except Exception:
        return None  # a run that fails says why itself, and stops no other
    return Measured(step, batch * count_batches(cli))


def timed(cli: TrainingCLI, what: str, **changes: Any) -> float:
    """Seconds per batch."""
    watch = Stopwatch()
    config = dict(cli._get(cli.config_init, "trainer").items()) | changes
    config |= {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "callbacks": [],
    }
    trainer = cli._instantiate_trainer(config, [watch])
    count_steps(trainer)
    try:
        if what == "fit":
            trainer.fit(cli.model, datamodule=cli.datamodule)
        else:
            trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    except Enough:
        pass
    return watch.typical()


def count_batches(cli: TrainingCLI) -> int:
    """Number of batches of a whole validation."""
    data = cli.datamodule
    windows = [
        len(ConsecutiveWindows(text.ids, data.block_size)) for text in data.validated_texts.values()
    ]
    return sum(-(-count // data.eval_batch_size) for count in windows)
