"""A checkpoint with hostile values in its fields, written the way an attacker would."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fuzz.hostile import VALUES
from makemoe.checkpoint import format as files

DEPTH = 30_000

TRAINER = (
    *("callbacks", "logger", "plugins", "profiler", "default_root_dir", "strategy", "accelerator"),
    *("devices", "num_nodes", "precision", "max_steps", "max_time", "limit_val_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm", "model_registry", "enable_checkpointing"),
)
ADDED = (
    *(("makemoe", "settings", f"trainer.{name}") for name in TRAINER),
    *(("makemoe", "settings", key) for key in ("trust", "run.root", "run.name", "config", "model")),
    *(("makemoe", "settings", key) for key in ("data.corpus", "model.router", "ckpt_path", "data")),
    *(("makemoe", "settings", key) for key in ("print_config", "subcommand", "fit", "run", "")),
    *(("makemoe", key) for key in ("trust", "unknown", "checksum", "trusted")),
    *(("hyper_parameters", key) for key in ("unknown", "self", "net", "init_args", "class_path")),
    *(("datamodule_hyper_parameters", key) for key in ("unknown", "root", "trainer", "prompts")),
    ("hyper_parameters", "router", "init_args"),
    ("hyper_parameters", "router", "init_args", "unknown"),
    ("hyper_parameters", "router", "dict_kwargs"),
    ("hyper_parameters", "lr_scheduler", "init_args", "lr_lambda"),
    ("hyper_parameters", "optimizer", "init_args", "params"),
    ("state_dict", "unknown"),
    ("state_dict", "net.blocks.7.norm_1.weight"),
    ("callbacks", "LastCheckpoint"),
    ("callbacks", "ModelCheckpoint"),
    ("unknown",),
    *(("averaging", *inner) for inner in ((), ("steps",), ("trained",), ("trained", "net.x"))),
    ("hparams_type",),
    ("NativeMixedPrecisionPlugin",),
    ("MixedPrecision",),
    ("DoublePrecision",),
)
"""Fields that a checkpoint does not have, but that something may look for."""


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a checkpoint, branches too."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*at, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from paths(inner, (*at, index))


def replaced(value: Any, at: list[Any], new: Any, delete: bool = False) -> Any:
    """The same with another value at one place; a place that cannot be is left out."""
    if not at:
        return new
    key, *rest = at
    if isinstance(value, tuple) and not isinstance(key, str) and key < len(value):
        return tuple(replaced(list(value), at, new, delete))
    if isinstance(value, dict):
        if delete and not rest:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: replaced(value.get(key, {}), rest, new, delete)}
    if isinstance(value, list) and not isinstance(key, str) and key < len(value):
        if delete and not rest:
            return value[:key] + value[key + 1 :]
        return [*value[:key], replaced(value[key], rest, new, delete), *value[key + 1 :]]
    return value


def edited(checkpoint: Any, edits: list[Any]) -> Any:
    """A checkpoint after edits.

    An edit is ["named", place, name in VALUES], ["plain", place, value] or ["delete", place].
    """
    for what, at, *values in edits:
        new = VALUES[values[0]]() if what == "named" else values[0] if values else None
        checkpoint = replaced(checkpoint, at, new, what == "delete")
    return checkpoint


def write(original: Path, edits: list[Any], path: Path) -> None:
    """Write an edited checkpoint with makemoe's own writer, so that its checksum is right."""
    content = edited(torch.load(original, weights_only=True), edits)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(DEPTH)
    try:
        try:
            files.write(content, path)
        except Exception:
            torch.save(content, path)
    finally:
        sys.setrecursionlimit(limit)
