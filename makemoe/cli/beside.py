"""The callbacks and trackers of a fit, which write the files in the run's folder."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger

from makemoe.callbacks import (
    BestCheckpoint,
    Introduction,
    LastCheckpoint,
    Throughput,
)
from makemoe.cli import others
from makemoe.cli.held import carried_settings
from makemoe.files import replacing
from makemoe.run import RunSettings, tell_checkpoint
from makemoe.tracking.csv_logger import MetricsCSV
from makemoe.tracking.mlflow import MLflow
from makemoe.tracking.pictures import RouterPictures
from makemoe.tracking.samples import TextSample
from makemoe.tracking.tensorboard import TensorBoard
from makemoe.tracking.trackers import forgiving

if TYPE_CHECKING:
    from makemoe.cli.training import TrainingCLI

KNOWN = ("makemoe.", "torch.")
"""Prefixes of the classes that `predict` builds without --trust."""


def beside_training(cli: "TrainingCLI", trainer: Namespace) -> list[Callback]:
    """Take the run's folder, set the trackers in `trainer`, and return the callbacks."""
    run = RunSettings(**cli.settings.run.as_dict())
    cli.check_start(run)
    folder = cli.folder.take(
        run,
        cli.run_name(),
        None if cli.settings.ckpt_path is None else Path(cli.settings.ckpt_path),
        root_is_given=run.root != RunSettings.root or is_said(cli.arguments, "--run.root"),
    )
    # The first process may have taken a folder with another number: errors name its checkpoint.
    cli.folder.path = Path(others.of_first("folder", lambda: str(folder)))
    if trainer.logger is not False:
        trainer.logger = trackers(folder, trainer.logger, cli.checkpoint_step)
    callbacks: list[Callback] = [
        SaveConfig(cli, folder),
        Introduction(folder),
        cli.stop,
        Throughput(),
    ]
    if run.sample_tokens:
        prompt = run.sample_prompt or ""
        callbacks.append(TextSample(folder, prompt, run.sample_tokens, cli.settings.seed))
    if run.pictures:
        callbacks.append(RouterPictures(folder))
    if trainer.enable_checkpointing is not False:
        callbacks += [
            BestCheckpoint(folder),
            LastCheckpoint(folder, run.save_every_n_steps, carried_settings(cli.settings)),
        ]
    return callbacks


def trackers(folder: Path, wanted: Any, resume_step: int | None) -> list[Logger]:
    """The loggers: TensorBoard, those the user adds, and metrics.csv."""
    own: list[Logger] = [] if wanted is True else as_list(wanted)
    for logger in own:
        if isinstance(logger, MLflow):
            logger.begin(folder)
    events = TensorBoard(folder, resume_step)
    return [*map(forgiving, (events, *own)), MetricsCSV(folder, resume_step)]


class SaveConfig(Callback):
    """Writes config.yaml, from which the same run can be started again, and logs it to trackers."""

    def __init__(self, cli: "TrainingCLI", folder: Path) -> None:
        self.cli, self.path = cli, folder / "config.yaml"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it once the model is built and a checkpoint's weights are loaded."""
        if not trainer.is_global_zero:
            return
        settings = self.cli.settings.clone()
        of_this_start = "config", "ckpt_path", "allow_changed", "run.name"
        for key in (*of_this_start, "data.tokenizer.init_args.vocabulary"):
            # A name belongs to one run. A vocabulary would tie the file to one text.
            settings.pop(key, None)
        text = self.cli._subcommand_parsers["fit"].dump(settings, skip_none=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            path = shlex.quote(str(self.path))
            file.write(f"# makemoe fit --config {path}{self.weights()}\n{text}".encode())
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))

    def weights(self) -> str:
        """The option that names the weights the run began with; empty for new ones."""
        path = self.cli.begins_with
        return "" if path is None else f" --ckpt_path {shlex.quote(path)}"


class TellCheckpoint(Callback):
    """Prints once which checkpoint is used, after its weights are loaded."""

    def __init__(self, path: str, step: int | None) -> None:
        self.path, self.step = path, step
        self.told = False

    def tell(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it, in the first process only."""
        if trainer.is_global_zero and not self.told:
            tell_checkpoint(self.path, self.step)
        self.told = True

    on_train_start = on_validation_start = on_test_start = tell


def strangers(settings: Namespace) -> list[str]:
    """The modules of the model's and data's classes that are not part of makemoe or torch."""
    names = class_paths([settings.get("model"), settings.get("data")])
    modules = {name.rpartition(".")[0] for name in names if not name.startswith(KNOWN)}
    return sorted(modules - {""})


def class_paths(spec: Any) -> Iterator[str]:
    """Yield the names of all classes in settings."""
    if isinstance(spec, Namespace):
        spec = vars(spec)
    if isinstance(spec, dict):
        if isinstance(spec.get("class_path"), str):
            yield spec["class_path"]
        spec = list(spec.values())
    if isinstance(spec, list | tuple):
        for part in spec:
            yield from class_paths(part)


def is_said(arguments: list[str], option: str) -> bool:
    """Whether the user gave an option on the command line."""
    return any(argument.partition("=")[0] == option for argument in arguments)


def as_list(value: Any) -> list[Any]:
    """The value as a list: empty for None."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
