"""Times the overhead per step of Lightning's Trainer and of our callbacks."""

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.measure import Bench
from benchmarks.report import Goal, Result
from makemoe.callbacks import Throughput
from makemoe.data.datamodule import TextDataModule
from makemoe.data.windows import Batch
from makemoe.tracking.csv_logger import MetricsCSV
from makemoe.training.losses import cross_entropy
from makemoe.training.module import LanguageModel

STEPS = 300
NEAR_ZERO = {"n_layer": 1, "n_head": 1, "n_embd": 8, "num_experts": 2, "top_k": 1}
BLOCK_SIZE, BATCH_SIZE = 8, 2
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": -1,
    "log_every_n_steps": 50,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer(bench: Bench) -> list[Result]:
    """The step of a near-zero model in the Trainer, logging every 50 steps, against a bare loop."""
    bench.say("Trainer / bare loop")
    with scratch_folder() as folder:
        steps = bench.choose(STEPS, 10)
        runs = [
            lambda: fit(folder, *parts(), steps),
            partial(fit_alone, steps),
            partial(run_bare, steps),
        ]
        mine, alone, bare = (1000 * median(t) / steps for t in bench.alternate(runs))
    return [
        Result(
            f"{whose}, a step of a near-zero model",
            "float32",
            step,
            "bare loop, float32",
            bare,
            goal=goal,
            judged=step - bare,
            longer=True,
            note=f"overhead {step - bare:.2f} ms per step",
        )
        for whose, step, goal in (
            ("Trainer", mine, Goal("<=", 0.5, "ms")),
            ("Trainer with nothing of ours", alone, None),
        )
    ]


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder to train in, with Lightning's messages silenced."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Path(folder)


def fit(
    folder: Path, data: TextDataModule, model: LanguageModel, steps: int, **options: Any
) -> float:
    """Seconds of the steps only, with the loggers of `makemoe fit`; options go to the Trainer."""
    clock = Clock()
    Trainer(
        **QUIET,
        **options,
        max_steps=steps,
        logger=[TensorBoardLogger(str(folder), "events", ""), MetricsCSV(folder)],
        callbacks=[Throughput(), clock],
    ).fit(model, data)
    return clock.seconds


class Alone(LightningModule):
    """The smallest LightningModule: no metrics, no seeds, no state."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.net, self.optimizer = model.net, model.optimizer

    def training_step(self, batch: Batch) -> Tensor:
        return cross_entropy(self.net(batch[0])[0], batch[1])

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer(self.net.parameters())


def fit_alone(steps: int) -> float:
    """Seconds of the steps of the same model, with neither loggers nor callbacks."""
    data, model = parts()
    clock = Clock()
    Trainer(**QUIET, max_steps=steps, logger=False, callbacks=[clock]).fit(Alone(model), data)
    return clock.seconds


def run_bare(steps: int) -> float:
    """The same model, data and optimizer in eight lines."""
    data, model = parts()
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    net = model.net.train()
    optimizer = model.optimizer(net.parameters())
    begin = time.perf_counter()
    for x_BT, y_BT in islice(data.train_dataloader(), steps):
        loss = cross_entropy(net(x_BT)[0], y_BT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - begin


def parts() -> tuple[TextDataModule, LanguageModel]:
    data = TextDataModule("sample", block_size=BLOCK_SIZE, batch_size=BATCH_SIZE)
    model = LanguageModel(vocab_size=data.vocab_size, block_size=BLOCK_SIZE, **NEAR_ZERO)
    return data, model


class Clock(Callback):
    """Times training without start and end."""

    def on_train_start(self, *args: Any) -> None:
        self.begin = time.perf_counter()

    def on_train_end(self, *args: Any) -> None:
        self.seconds = time.perf_counter() - self.begin
