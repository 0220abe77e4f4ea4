"""Checks before anything starts: numbers, devices, callbacks."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from makemoe import process
from makemoe.cli.strategies import check_strategy, starts_processes
from makemoe.errors import UsageError
from makemoe.files import STANDARD_INPUT

LEAST = {
    "max_epochs": (1, -1),
    "max_steps": (1, -1),
    "min_steps": (1, None),
    "overfit_batches": (0, None),
    "val_check_interval": (1, None),
    "check_val_every_n_epoch": (1, None),
    "num_sanity_val_steps": (0, -1),
    "log_every_n_steps": (1, None),
    "accumulate_grad_batches": (1, None),
    "gradient_clip_val": (0, None),
    "fast_dev_run": (0, None),
}
"""Minimum of each number of the trainer, and a smaller value with a special meaning, or None."""

MOST_SAMPLE_TOKENS = 100_000
WORKERS_PER_CPU = 4

CLUSTERS = ("MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE")
"""Environment variables; one of them is set if several machines work together."""


def check_settings(settings: Namespace) -> None:
    """Refuse settings that Lightning accepts, but that then fail, do nothing or never end.

    Args:
        settings: the parsed settings of one subcommand.

    Raises:
        UsageError: for an invalid setting; the message names the option.
    """
    trainer, data, run = settings.trainer, settings.data, settings.run
    check_counts(trainer)
    check_time(trainer)
    check_run(run)
    check_strategy(trainer.strategy)
    if settings.get("ckpt_path") == "":
        raise UsageError("--ckpt_path is empty: give a file, `last` or `best`")
    most = WORKERS_PER_CPU * (os.cpu_count() or 1)
    if data.num_workers > most:
        raise UsageError(
            f"--data.num_workers {data.num_workers} is too many for {os.cpu_count()} CPU cores: "
            f"give {most} or fewer"
        )
    for option in ("corpus", "test_corpus"):
        if data.get(option) == STANDARD_INPUT and has_several_processes(trainer):
            raise UsageError(
                f"--data.{option} -: standard input cannot be shared by several processes: "
                "save the text to a file, or give --trainer.devices 1"
            )


def check_counts(trainer: Namespace) -> None:
    """Refuse counts of the trainer that are too small or not whole numbers."""
    for name, (least, special) in LEAST.items():
        count = trainer.get(name)
        if isinstance(count, bool) or not isinstance(count, int | float):
            continue
        if count < least and count != special:
            other = "" if special is None else f", or {special}"
            raise UsageError(f"--trainer.{name} {count} must be {least} or more{other}")
    # An epoch has no end here. 1.0 is all of it.
    limit = trainer.get("limit_train_batches")
    if limit is not None and (type(limit) is not float or limit != 1.0):
        raise UsageError(
            f"--trainer.limit_train_batches {limit}: batches never end; give --trainer.max_steps, "
            "or --trainer.overfit_batches to repeat the first ones"
        )
    if (least := trainer.get("min_epochs")) is not None:
        raise UsageError(
            f"--trainer.min_epochs {least}: training counts steps, not epochs; give "
            "--trainer.min_steps instead"
        )
    if isinstance(count := trainer.get("overfit_batches"), float) and count:
        raise UsageError(f"--trainer.overfit_batches {count} must be a whole number")
    epochs = trainer.get("check_val_every_n_epoch")
    if epochs is not None and epochs > 1:
        raise UsageError(
            f"--trainer.check_val_every_n_epoch {epochs}: training counts steps, not epochs; give "
            "--trainer.val_check_interval STEPS instead"
        )
    interval = trainer.get("val_check_interval")
    by_epochs = isinstance(interval, float) and epochs == 1
    if not (interval is None or type(interval) is int or by_epochs):
        raise UsageError(
            f"--trainer.val_check_interval {interval}: training counts steps, not time or epochs; "
            "give a whole number of steps"
        )
    least, most = trainer.get("min_steps"), trainer.get("max_steps")
    if least is not None and 0 < most < least:
        raise UsageError(f"--trainer.min_steps {least} is more than max_steps {most}")
    nodes = trainer.get("num_nodes")
    if isinstance(nodes, int) and nodes > 1 and not any(name in os.environ for name in CLUSTERS):
        raise UsageError(
            f"--trainer.num_nodes {nodes}: the other machines are not known; set MASTER_ADDR, "
            "MASTER_PORT and NODE_RANK on each machine"
        )


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse the callbacks of Lightning that average weights.

    StochasticWeightAveraging counts epochs, which never end here, and would replace the trained
    weights by those at the run's start. What is wrong with the others: see docs/averaging.md.
    """
    for callback in callbacks:
        if isinstance(callback, StochasticWeightAveraging | WeightAveraging):
            raise UsageError(
                f"--trainer.callbacks: {type(callback).__name__} averages weights that a resumed "
                "run and its evaluations would not find: use --model.averaging ExponentialAverage"
            )


def check_time(trainer: Namespace) -> None:
    """Refuse a time limit of zero, or one that is not a time."""
    limit = trainer.get("max_time")
    if isinstance(limit, str):
        over = bool(limit.strip("0:"))
    else:
        try:
            over = limit is None or duration(limit) > timedelta()
        except (TypeError, OverflowError) as error:
            raise UsageError(f"--trainer.max_time {limit}: {error}") from error
    if not over:
        raise UsageError(f"--trainer.max_time {limit} is not a positive time: give DD:HH:MM:SS")


def duration(limit: Any) -> timedelta:
    """A time span, from itself or from its parts such as days and hours."""
    if isinstance(limit, timedelta):
        return limit
    return timedelta(**(limit.as_dict() if isinstance(limit, Namespace) else limit))


def check_run(run: Namespace) -> None:
    """Refuse names that cannot be printed in one line, and samples that are too long."""
    for name in ("root", "name"):
        value = run.get(name)
        if value is not None and not (value and value.isprintable()):
            raise UsageError(f"--run.{name} {value!r} cannot be the name of a folder")
    if run.sample_tokens > MOST_SAMPLE_TOKENS:
        raise UsageError(
            f"--run.sample_tokens {run.sample_tokens} is too long: "
            f"give {MOST_SAMPLE_TOKENS} or fewer"
        )


def has_several_processes(trainer: Namespace) -> bool:
    """Whether the run uses, or will use, more than one process."""
    if any(name in os.environ for name in ("LOCAL_RANK", "RANK")):
        return True
    devices = count_devices(trainer)
    if devices == "auto":
        on_gpu = trainer.accelerator in ("auto", "gpu", "cuda")
        devices = max(1, torch.cuda.device_count()) if on_gpu else 1
    if isinstance(devices, list):
        devices = len(devices)
    return str(devices).strip() != "1" or (trainer.get("num_nodes") or 1) > 1


def count_devices(trainer: Namespace) -> Any:
    """The processes to start: with several on a CPU, `auto` is one per core (Lightning: one).

    `auto` is what a launcher has started, if there is one.
    """
    if trainer.devices == "auto" and (started := process.started_here()):
        return started
    if trainer.devices == "auto" and starts_processes(trainer.strategy) and is_on_cpu(trainer):
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return trainer.devices


def is_on_cpu(trainer: Namespace) -> bool:
    """Whether the trainer uses the CPU."""
    return trainer.accelerator == "cpu" or (
        trainer.accelerator == "auto"
        and not torch.cuda.is_available()
        and not torch.backends.mps.is_available()
    )
