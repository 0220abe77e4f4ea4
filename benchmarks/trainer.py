"""What Lightning's Trainer, and what we hang on it, costs a step."""

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.measure import Bench, alternate
from benchmarks.report import Goal, Result
from makemoe.callbacks import Throughput
from makemoe.data.datamodule import TextDataModule
from makemoe.training.csv_logger import MetricsCSV
from makemoe.training.losses import cross_entropy
from makemoe.training.module import LanguageModel

STEPS = 300
NEAR_ZERO = {"n_layer": 1, "n_head": 1, "n_embd": 8, "num_experts": 2, "top_k": 1}
BLOCK_SIZE, BATCH_SIZE = 8, 2


def trainer(bench: Bench) -> list[Result]:
    """A near-zero model's step in the Trainer, logging every 50, against a bare loop."""
    bench.say("Trainer / bare loop")
    with scratch_folder() as folder:
        runs = [lambda: fit(folder, *parts()), run_bare]
        mine, bare = (1000 * median(t) / STEPS for t in alternate(runs, bench.seconds))
    overhead = mine - bare
    return [
        Result(
            "Trainer, a step of a near-zero model",
            "float32",
            mine,
            "bare loop, float32",
            bare,
            goal=Goal("<=", 0.5, "ms"),
            judged=overhead,
            longer=True,
            note=f"overhead {overhead:.2f} ms a step",
        )
    ]


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder to train in, where Lightning says nothing."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Path(folder)


def fit(folder: Path, data: TextDataModule, model: LanguageModel, steps: int = STEPS) -> float:
    """Seconds of the steps alone, with the loggers that `makemoe fit` has."""
    clock = Clock()
    Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=steps,
        log_every_n_steps=50,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=[TensorBoardLogger(str(folder), "events", ""), MetricsCSV(folder)],
        callbacks=[Throughput(), clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, data)
    return clock.seconds


def run_bare() -> float:
    """The same model, data and optimizer in eight lines."""
    data, model = parts()
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    net = model.net.train()
    optimizer = model.optimizer(net.parameters())
    begin = time.perf_counter()
    for x_BT, y_BT in islice(data.train_dataloader(), STEPS):
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
    """Times training without its beginning and its end."""

    def on_train_start(self, *args: Any) -> None:
        self.begin = time.perf_counter()

    def on_train_end(self, *args: Any) -> None:
        self.seconds = time.perf_counter() - self.begin
