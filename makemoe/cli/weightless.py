"""The model of a config, with its sizes and without its weights."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace

from makemoe.claim import OwnFolder
from makemoe.cli.configs import config_file
from makemoe.cli.sizes import plan as steps_of
from makemoe.cli.strict_parser import TrainingParser
from makemoe.cli.strict_yaml import read_settings
from makemoe.cli.training import TrainingCLI, quieten
from makemoe.data.datamodule import TextDataModule
from makemoe.errors import DataError, UsageError
from makemoe.model.block import Architecture
from makemoe.model.budget import Need, Plan, planned
from makemoe.model.footprint import Footprint, Unfilled, footprint
from makemoe.model.transformer import MoETransformer
from makemoe.parallel.forecast import Training
from makemoe.parallel.stored import Kept
from makemoe.parallel.strategy import PRECISIONS as DIVIDED
from makemoe.parallel.traffic import Sizes, Step
from makemoe.training.work import Work, work_of


class Anywhere(Plan):
    """A model that may be larger than this machine: nothing is allocated."""

    def needs(self, model: Architecture, size: Footprint) -> list[Need]:
        return []


class SettingsOnly(TrainingCLI):
    """Parses and checks the settings of a fit, and builds nothing."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Planned(NamedTuple):
    """A fit that is planned.

    Attributes:
        training: what is trained, with this many windows per process.
        work: sizes of the model, and its work per token.
        windows: windows per batch of all processes.
        block_size: tokens per window.
        precision: the Trainer's.
        raised: the config's number of windows, if it was too small; else 0.
        has_strategy: whether the config has a strategy with options.
        notes: what the forecast does not count.
    """

    training: Training
    work: Work
    windows: int
    block_size: int
    precision: str
    raised: int
    has_strategy: bool
    notes: list[str]


def settings_of(words: Sequence[str]) -> Namespace:
    """The settings of a fit with these options.

    Raises:
        UsageError: as fit would, and if they say nothing of a model.
    """
    quieten()
    with OwnFolder() as folder:
        cli = SettingsOnly(["fit", *words], folder)
    files = [str(file) for file in cli.settings.get("config") or []]
    says = any("model" in read_settings(config_file(file)) for file in files)
    if not says and not any(word.startswith("--model.") for word in words):
        raise UsageError(
            f"--config {', '.join(files)}: there is no model in it: add a recipe, such as --config "
            "quickstart"
        )
    return cli.settings


def built(settings: Namespace, vocab_size: int | None) -> MoETransformer:
    """The model of some settings, without memory for its weights.

    Args:
        settings: of a fit.
        vocab_size: number of symbols; None: those of the text.
    """
    if vocab_size is None:
        reader = TrainingParser()
        reader.add_class_arguments(TextDataModule, "data")
        try:
            vocab_size = reader.instantiate_classes(within("data", settings.data)).data.vocab_size
        except DataError as error:
            raise DataError(f"{error}; --vocab_size N plans without the text") from error
    own = inspect.signature(MoETransformer).parameters
    model = settings.model.clone()
    for name in vars(settings.model).keys() - own:  # of training
        model.pop(name)
    model.vocab_size = vocab_size
    parser = TrainingParser()
    parser.add_class_arguments(MoETransformer, "model")
    with planned(Anywhere()), torch.device("meta"), Unfilled():
        net: MoETransformer = parser.instantiate_classes(within("model", model)).model
    return net


def within(group: str, settings: Namespace) -> Namespace:
    """Settings as those of a group."""
    outer: Namespace = Namespace()  # type: ignore[no-untyped-call]
    outer[group] = settings
    return outer


def planned_fit(settings: Namespace, net: MoETransformer, processes: int) -> Planned:
    """What a fit with these settings trains on so many processes.

    Every process has at least one window of a batch: a smaller batch is raised.
    """
    trainer = settings.trainer
    given = settings.data.batch_size
    windows = max(given, processes)
    steps = replace(steps_of(settings, "fit", 1), batch_size=-(-windows // processes))
    step = Step(
        tokens=steps.batch_size * net.block_size,
        batches=trainer.accumulate_grad_batches,
        weight_bytes=steps.weight_bytes,
        product_bytes=steps.number_bytes,
    )
    size, work = footprint(net.architecture), work_of(net)
    kept = Kept(
        moments=steps.moments,
        outer=size.outer,
        outer_moments=steps.moments if steps.outer_moments is None else steps.outer_moments,
        averages=steps.averages,
        activations=steps.training(net.architecture, size)["activations"],
    )
    return Planned(
        Training(Sizes.of(net), step, kept, work.flops, precision_of(settings) in DIVIDED),
        work,
        windows,
        net.block_size,
        precision_of(settings),
        given if windows > given else 0,
        not isinstance(trainer.strategy, str),
        not_counted(settings.model),
    )


def precision_of(settings: Namespace) -> str:
    """The Trainer's precision by its full name."""
    given = settings.trainer.precision
    return PRECISIONS.get(str(given), str(given))


PRECISIONS = {
    **dict.fromkeys(("None", "32"), "32-true"),
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    "64": "64-true",
}
"""Short names of precisions, and none at all."""


def not_counted(model: Any) -> list[str]:
    """What these settings send that the formulas leave out."""
    optimizer = model.optimizer.class_path.rpartition(".")[2]
    return ["Muon's exchange of matrices that are in parts"] if optimizer == "Muon" else []
