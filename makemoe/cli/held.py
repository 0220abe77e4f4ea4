"""Turns a checkpoint's settings into options, and keeps the parser from interpreting its texts."""

import secrets
from collections.abc import Mapping
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT

from makemoe.checkpoint.format import KEY, Checkpoint
from makemoe.checkpoint.held import FreeText, Part, Reader, signature_of
from makemoe.checkpoint.inference import built_tokenizer
from makemoe.cli.evaluation import names_no_text
from makemoe.data.datamodule import TextDataModule
from makemoe.data.tokenizer import Tokenizer
from makemoe.errors import CheckpointError
from makemoe.model.transformer import MoETransformer
from makemoe.training.described import OF_THE_RUN
from makemoe.training.module import LanguageModel

CARRIED: dict[str, Any] = {
    "seed": int,
    "trainer.max_steps": int,
    "trainer.max_epochs": int,
    "trainer.val_check_interval": int | float,
    "trainer.check_val_every_n_epoch": int,
    "trainer.num_sanity_val_steps": int,
    "trainer.limit_val_batches": int | float,
    "trainer.overfit_batches": int | float,
    "trainer.log_every_n_steps": int,
    "trainer.accumulate_grad_batches": int,
    "trainer.gradient_clip_val": int | float,
    "trainer.gradient_clip_algorithm": Literal["norm", "value"],
    "trainer.precision": _PRECISION_INPUT,
    "trainer.deterministic": bool | Literal["warn"],
    "trainer.detect_anomaly": bool,
    "run.save_every_n_steps": int,
    "run.sample_prompt": str,
    "run.sample_tokens": int,
    "run.pictures": bool,
}
"""Settings of the trainer and the run that a checkpoint stores, and their types.

They say how a run learns and what it writes, not where or on which machine. In particular, there
are no callbacks, loggers, plugins or profilers, no paths, and no numbers of processes.
"""

OF_THE_PLACE = {"data.num_workers", "data.unknown"}
"""Arguments that a checkpoint does not set: they depend on the machine or on the command."""

FOLLOWING = {"model.seed", "model.vocab_size", "data.seed", "data.block_size"}
"""Arguments that are not options: they follow from other options."""


def carried_settings(settings: Namespace) -> dict[str, Any]:
    """The settings that a checkpoint stores in addition to model and data, by option."""
    return {key: settings[key] for key in CARRIED if settings.get(key) is not None}


def annotations() -> dict[str, Any]:
    """The type of every setting that a checkpoint may contain, by option."""
    arguments = {
        "model": {**signature_of(MoETransformer)[0], **signature_of(LanguageModel)[0]},
        "data": signature_of(TextDataModule)[0],
    }
    found = {
        f"{group}.{name}": parameter.annotation
        for group, parameters in arguments.items()
        for name, parameter in parameters.items()
    }
    left_out = OF_THE_PLACE | FOLLOWING
    return {k: v for k, v in found.items() if k not in left_out} | CARRIED


def settings_in(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's settings, unchecked, by option."""
    ours = checkpoint[KEY]
    groups = {"model": "hyper_parameters", "data": "datamodule_hyper_parameters"}
    held = {
        f"{group}.{name}": value
        for group, key in groups.items()
        for name, value in checkpoint.get(key, {}).items()
    }
    carried = ours.get("settings", {})
    if not isinstance(carried, dict):
        raise CheckpointError("the checkpoint is damaged or forged: its settings are not a mapping")
    return (
        held
        | {k: v for k, v in carried.items() if k in CARRIED}
        | {"data.tokenizer": ours.get("tokenizer")}
    )


def checked_settings(
    checkpoint: Checkpoint, reader: Reader, said: Mapping[str, bool]
) -> dict[str, Any]:
    """A checkpoint's settings, checked against the types of their options.

    Args:
        checkpoint: the checkpoint.
        reader: checks the values.
        said: all options, and whether the user has set each. If so, an invalid setting of the
            checkpoint is omitted.

    Raises:
        CheckpointError: for an invalid setting that the user does not override.
    """
    held, checked = settings_in(checkpoint), {}
    for key, annotation in annotations().items():
        if key not in held or key not in said:
            continue
        if key == "data.tokenizer":
            annotation = Tokenizer | None
        try:
            checked[key] = value = reader.value(held[key], annotation, key)
            if key == "data.tokenizer" and value is not None:
                built_tokenizer(value, reader.path)  # its errors would not name the checkpoint
        except CheckpointError:
            if not said[key]:
                raise
    return checked


def check_names_text(checkpoint: Checkpoint, path: str, said: Mapping[str, bool]) -> None:
    """Refuse to train or evaluate on the bundled play in place of a text that nobody named.

    A checkpoint that was imported names no text.

    Raises:
        CheckpointError: naming the option.
    """
    if "data.corpus" not in settings_in(checkpoint) and not said["data.corpus"]:
        raise names_no_text(path)


def check_resumable(checkpoint: Checkpoint, path: str, said: Mapping[str, bool]) -> None:
    """Refuse to train on with default settings in place of those that a checkpoint cannot hold.

    A checkpoint of a model that was built in Python lacks the optimizer or the schedule if it was
    a function that cannot be described.

    Raises:
        CheckpointError: naming the options.
    """
    held = settings_in(checkpoint)
    for key in (f"model.{name}" for name in OF_THE_RUN):
        if key not in held and not said[key]:
            raise CheckpointError(
                f"{path} does not hold the {key.removeprefix('model.')} it was trained with, a "
                f"function in Python: resume it in Python, or give another --{key}"
            )


class Hidden:
    """Replaces a checkpoint's free texts with random words while a parser runs.

    A parser interprets a text as YAML, or as the name of a YAML file. So it gets a random word for
    each text, which YAML reads as a plain string. The texts are put back afterwards.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def hide(self, value: Any) -> Any:
        """The setting with its texts replaced by random words."""
        if isinstance(value, FreeText):
            word = f"held-{secrets.token_hex(16)}"
            self.texts[word] = str(value)
            return word
        if isinstance(value, Part):
            return {"class_path": value.path, "init_args": self.hide(value.init_args)}
        if isinstance(value, dict):
            return {key: self.hide(inner) for key, inner in value.items()}
        return [self.hide(inner) for inner in value] if isinstance(value, list) else value

    def reveal(self, value: Any) -> Any:
        """The setting with its texts put back; mappings and lists are changed in place."""
        if isinstance(value, str):
            return self.texts.get(value, value)
        if isinstance(value, Namespace | dict):
            items = vars(value) if isinstance(value, Namespace) else value
            for key, inner in items.items():
                items[key] = self.reveal(inner)
        elif isinstance(value, list):
            value[:] = map(self.reveal, value)
        return value
