"""Runs of a tiny model in this process, with what they wrote."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from makemoe.callbacks import BestCheckpoint, LastCheckpoint
from makemoe.checkpoint.lightning_io import SafeCheckpointIO
from makemoe.data.datamodule import TextDataModule
from makemoe.tracking.csv_logger import MetricsCSV
from makemoe.training.module import LanguageModel
from makemoe.training.steps import count_steps

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "check_val_every_n_epoch": None,
    "max_epochs": -1,
    "log_every_n_steps": 2,
}


def run(
    folder: Path,
    *callbacks: Callback,
    resume: Path | None = None,
    counts: Callable[[Trainer], None] = count_steps,
    corpus: str = "sample",
    parts: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """A run in a folder, as the command line builds it, of a tiny model with other `parts`."""
    torch.manual_seed(1)
    sizes: Mapping[str, Any] = {"block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}
    data = TextDataModule(corpus, block_size=8, batch_size=4, eval_batch_size=512)
    parts = {"num_experts": 3, "dropout": 0.1, **sizes, **(parts or {})}
    model = LanguageModel(vocab_size=data.vocab_size, **parts)
    trainer = Trainer(
        **QUIET | settings,
        logger=MetricsCSV(folder, None if resume is None else step_of(resume)),
        plugins=[SafeCheckpointIO()],
        callbacks=[*callbacks, BestCheckpoint(folder), LastCheckpoint(folder, 4, {})],
    )
    counts(trainer)
    trainer.fit(model, data, ckpt_path=resume)
    return trainer


def step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


def rows(folder: Path) -> list[dict[str, str]]:
    """What was logged at each step; a metric that is not logged yet has no column."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def validated(folder: Path) -> list[int]:
    return [int(row["step"]) for row in rows(folder) if "val_loss" in row]
