"""What is looked at before anything starts: config files, counts, devices."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace

from makemoe.errors import UsageError


def check_counts(trainer: Namespace) -> None:
    """Refuse counts that Lightning takes and then divides by, or ends at without a word."""
    for name in ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
        count = trainer.get(name)
        endless = name == "max_steps" and count == -1
        if isinstance(count, int | float) and count <= 0 and not endless:
            raise UsageError(f"--trainer.{name} {count} is not a positive number: give 1 or more")


def count_devices(trainer: Namespace) -> Any:
    """The processes to start: `auto` with ddp on a CPU is one a core (Lightning takes one)."""
    distributed = isinstance(trainer.strategy, str) and trainer.strategy.startswith("ddp")
    if trainer.devices == "auto" and distributed and is_on_cpu(trainer):
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return trainer.devices


def is_on_cpu(trainer: Namespace) -> bool:
    """Whether a trainer computes on the CPU."""
    return trainer.accelerator == "cpu" or (
        trainer.accelerator == "auto"
        and not torch.cuda.is_available()
        and not torch.backends.mps.is_available()
    )


def check_yaml(arguments: Sequence[str]) -> None:
    """Refuse a config file that cannot be read, with its name and line.

    Raises:
        UsageError: for a file that is not there, or is not a mapping in YAML.
    """
    files = [b for a, b in pairwise(arguments) if a in ("-c", "--config")]
    files += [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--config {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"--config {file}: not UTF-8 at byte {error.start}") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            problem = getattr(error, "problem", None) or "not YAML"
            raise UsageError(f"--config {file}: broken YAML{where}: {problem}") from error
        if not isinstance(content, dict):
            raise UsageError(f"--config {file}: no settings in it; see configs/ for examples")
