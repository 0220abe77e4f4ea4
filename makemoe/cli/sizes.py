"""The memory that fit, validate and test need, worked out from their settings before they start."""

import importlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningCLI

from makemoe.cli.checks import count_devices, is_on_cpu
from makemoe.data.datamodule import TextDataModule, check_shares
from makemoe.data.windows import ConsecutiveWindows
from makemoe.model.budget import check_memory, planned
from makemoe.training.module import LanguageModel
from makemoe.training.optim import build_optimizer
from makemoe.training.param_groups import OneGroup, weights_of
from makemoe.training.plan import Steps

PROBE = 64
"""Rows and columns of the weight with which an optimizer is tried."""


class SizedCLI(LightningCLI):
    """LightningCLI that refuses settings for which this machine has too little memory."""

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; the model is checked against the command's needs."""
        settings = self.config[self.config.subcommand]
        devices, nodes = count_processes(settings.trainer), settings.trainer.num_nodes
        batch_size = settings.data.batch_size
        if self.config.subcommand == "fit" and are_counts(batch_size, devices, nodes):
            check_shares(batch_size, devices * nodes)
        with planned(plan(settings, self.config.subcommand, devices)):
            super().instantiate_classes()

    def check_steps(self) -> None:
        """Raise UsageError if a step of training or of evaluation on this text does not fit."""
        command = self.config.subcommand
        settings = self.config[command]
        assert isinstance(self.model, LanguageModel)
        assert isinstance(self.datamodule, TextDataModule)
        windows = 0
        if command != "fit" or validates(settings.trainer):
            windows = count_windows(self.datamodule, command)
        steps = plan(settings, command, count_processes(settings.trainer), windows)
        check_memory(self.model.net.architecture, steps)


def plan(settings: Namespace, command: str, devices: int, windows: int = 0) -> Steps:
    """What a command's settings request, with this number of windows to evaluate."""
    trainer, data, precision = settings.trainer, settings.data, str(settings.trainer.precision)
    fits = command == "fit"
    nodes = trainer.num_nodes if are_counts(trainer.num_nodes) else 1
    # It is not known what other strategies and plugins do with the weights.
    plain = isinstance(trainer.strategy, str) and trainer.strategy.startswith(PLAIN_STRATEGIES)
    weight, number = (1, 1) if trainer.plugins else number_bytes(precision)
    moments, outer_moments = count_moments(settings.model) if fits else (0, 0)
    return Steps(
        batch_size=positive(data.batch_size),
        eval_batch_size=positive(data.eval_batch_size),
        devices=devices,
        num_nodes=nodes,
        num_workers=positive(data.num_workers, 0),
        sample_tokens=positive(settings.run.sample_tokens, 0) if fits and windows else 0,
        steps=count_steps(trainer) if fits else 0,
        moments=moments,
        outer_moments=outer_moments,
        averages=fits and settings.model.get("averaging") is not None,
        weight_bytes=weight,
        number_bytes=number,
        eval_windows=windows,
        card=card_memory(trainer),
        shards=1 if plain else devices * nodes,
    )


PLAIN_STRATEGIES = ("auto", "ddp", "single")
"""Strategies that keep all weights in each process."""


def count_processes(trainer: Namespace) -> int:
    """Number of processes to start on this machine; 1 if it is not known."""
    devices = count_devices(trainer)
    if isinstance(devices, str):
        with suppress(ValueError, IndexError):
            numbers = [int(part) for part in devices.split(",") if part.strip()]
            devices = numbers if "," in devices else numbers[0]
    if isinstance(devices, list | tuple):
        return max(1, len(devices))
    if devices in ("auto", -1) and card_memory(trainer) is not None:
        return torch.cuda.device_count()
    return positive(devices)


def card_memory(trainer: Namespace) -> int | None:
    """Memory of the smallest GPU, in bytes, if GPUs with memory of their own are used."""
    if is_on_cpu(trainer) or trainer.accelerator not in ("auto", "gpu", "cuda"):
        return None
    count = torch.cuda.device_count()
    return min(
        (torch.cuda.get_device_properties(n).total_memory for n in range(count)), default=None
    )


def number_bytes(precision: str) -> tuple[int, int]:
    """Minimum bytes of a weight, and of an intermediate value."""
    if precision.startswith("transformer-engine"):
        return 2, 1
    size = 2 if "16" in precision else 8 if "64" in precision else 4
    return (4 if "mixed" in precision else size), size


def count_steps(trainer: Namespace) -> int:
    """Optimizer steps of a fit; -1 means no limit."""
    if trainer.fast_dev_run:
        return int(trainer.fast_dev_run)
    return trainer.max_steps if are_counts(trainer.max_steps) else -1


def validates(trainer: Namespace) -> bool:
    """Whether a fit reaches a validation."""
    interval, steps = trainer.val_check_interval, count_steps(trainer)
    if trainer.limit_val_batches == 0:
        return False
    if type(interval) is int and steps > 0:
        return steps >= interval
    return True


def count_windows(data: TextDataModule, command: str) -> int:
    """Number of windows that an evaluation covers."""
    ids = data.test_text.ids if command == "test" else data.ids[data.split :]
    return len(ConsecutiveWindows(ids, data.block_size))


def count_moments(model: Namespace) -> tuple[int, int]:
    """Numbers that the optimizer stores per weight of a matrix, and of an embedding, rounded down.

    Measured in one step on one of each, since nearly all weights are in them.

    Args:
        model: the settings of the model.
    """
    with torch.random.fork_rng(devices=[]):  # the next random numbers are the model's
        layers = torch.nn.ModuleList(
            [torch.nn.Linear(PROBE, PROBE, bias=False), torch.nn.Embedding(PROBE, PROBE)]
        )
    matrix, embedding = layers.parameters()

    def closure() -> float:
        for weight in (matrix, embedding):
            weight.grad = torch.zeros_like(weight)
        return 0.0

    # Errors of an optimizer are reported when it is built for the model.
    with suppress(Exception):
        spec = model.get("param_groups")
        policy = OneGroup() if spec is None else factory(spec)()
        optimizer = build_optimizer(factory(model.optimizer), policy, weights_of(layers))
        optimizer.step(closure)
        return kept_per_number(optimizer, matrix), kept_per_number(optimizer, embedding)
    return 0, 0


def kept_per_number(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> int:
    """Numbers that an optimizer stores for each number of a weight, rounded down."""
    kept = [v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor)]
    return sum(tensor.numel() for tensor in kept) // weight.numel()


def factory(spec: Namespace) -> Callable[..., Any]:
    """The class that settings name, with their arguments bound."""
    module, _, name = spec["class_path"].rpartition(".")
    return partial(
        getattr(importlib.import_module(module), name),
        **dict((spec.get("init_args") or {}).items()),
    )


def are_counts(*values: Any) -> bool:
    """Whether all are integers above 0."""
    return all(type(value) is int and value > 0 for value in values)


def positive(value: Any, otherwise: int = 1) -> int:
    """The value if it is a count, else a substitute. Other checks refuse an invalid count."""
    return value if are_counts(value) else otherwise
