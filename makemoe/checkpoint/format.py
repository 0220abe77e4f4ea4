"""Reads and writes checkpoints. Writes are atomic; reads do not trust the file.

A checkpoint may come from anyone. It is a ZIP archive as `torch.save` writes it, with a checksum of
the whole file as its comment. It is read with `weights_only=True`, so no code in it runs, and it
may contain only plain values and tensors. `makemoe.checkpoint.held` decides which settings and
classes it may name. This module does not need Lightning, because sampling reads checkpoints too.
"""

import os
import pickle
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, NoReturn, cast

import torch
from torch import Tensor

from makemoe import __version__
from makemoe.checkpoint.seal import Sealing, Unsealed, check_archive, has_seal
from makemoe.errors import CheckpointError, WriteError
from makemoe.files import open_regular, replacing

FORMAT = 2
"""Version of the format; increased when older versions of makemoe cannot read it."""

UNSEALED = 1
"""The version without a checksum; otherwise the same as version 2."""

KEY = "makemoe"

Checkpoint = dict[str, Any]

KINDS: dict[str, type] = {
    "state_dict": dict,
    "hyper_parameters": dict,
    "datamodule_hyper_parameters": dict,
    "global_step": int,
    "epoch": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "optimizer_groups": list,
    "lr_schedulers": list,
    "router_metrics": list,
    "work_done": dict,
    "pytorch-lightning_version": str,
}
"""Type of each entry of a checkpoint."""

MOST_VALUES, DEEPEST = 1_000_000, 64
"""Limits for the number of values in a checkpoint and their nesting; no model needs more."""


def stamp(checkpoint: Checkpoint, tokenizer: dict[str, Any] | None) -> None:
    """Mark a Lightning checkpoint as a makemoe checkpoint and add the tokenizer's specification.

    It is marked as one without a checksum, which Lightning itself may write; `write` adds it.
    """
    ours = checkpoint.setdefault(KEY, {})
    ours.update(format=UNSEALED, version=__version__, tokenizer=tokenizer)


def write(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint atomically: `path` is always the complete old or the complete new one.

    Raises:
        WriteError: if it cannot be written; `path` is unchanged.
    """
    path = Path(path)
    ours = checkpoint.get(KEY)
    if isinstance(ours, dict) and repr(ours.get("format")) == repr(UNSEALED):
        checkpoint = checkpoint | {KEY: ours | {"format": FORMAT}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            sealing = Sealing(file)
            torch.save(checkpoint, cast(BinaryIO, sealing))
            sealing.seal()
    except (OSError, RuntimeError) as error:
        raise WriteError(f"the checkpoint {path}", error) from error


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> Checkpoint:
    """Read a makemoe checkpoint without running any code in it.

    Raises:
        CheckpointError: for a file that is missing, truncated, not a makemoe checkpoint, of a
            different version, changed since it was written, or that would run code.
    """
    if "://" in os.fspath(path):
        raise CheckpointError(f"{path} is a URL, not a file: download it and pass the file")
    sealed = _check_file(path)
    try:
        # Explicit, because an environment variable can change the default.
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"cannot read {path}: it would run code while loading; makemoe checkpoints never do"
        ) from error
    except Exception as error:
        raise CheckpointError(f"cannot read {path}: {_NOT_OURS}") from error
    ours = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a makemoe checkpoint")
    _check_plain(path, checkpoint)
    version, written_by = ours.get("format"), ours.get("version")
    if not isinstance(version, int):
        damaged(path, f"its format is a {type(version).__name__}")
    if version not in (UNSEALED, FORMAT):
        raise CheckpointError(
            f"{path} has checkpoint format {version}, written by makemoe {written_by}; "
            f"this is makemoe {__version__}, which reads format {FORMAT}"
        )
    if version == FORMAT and not sealed:
        raise CheckpointError(f"{path} is damaged: its checksum is missing")
    for key, kind in KINDS.items():
        value = checkpoint.get(key, kind())
        if not isinstance(value, kind) or isinstance(value, bool):
            damaged(path, f"its {key} is a {type(checkpoint[key]).__name__}")
    for name, weight in checkpoint["state_dict"].items():
        if not isinstance(name, str) or not isinstance(weight, Tensor):
            damaged(path, f"its weight {name!r:.60} is not a tensor")
        _check_finite(path, name, weight)
    found: Checkpoint = checkpoint
    return found


_NOT_OURS = "it is not a checkpoint, or it is damaged"


def damaged(path: str | os.PathLike[str], what: str) -> NoReturn:
    """Raise the error for a file with invalid contents."""
    raise CheckpointError(f"{path} is damaged or forged: {what}")


def _check_file(path: str | os.PathLike[str]) -> bool:
    """Whether the file has a checksum; CheckpointError if it is unreadable or has changed."""
    try:
        with open_regular(path) as file:
            check_archive(file)
            return has_seal(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}: `makemoe runs` lists the runs") from error
    except PermissionError as error:
        raise CheckpointError(f"no permission to read the checkpoint {path}") from error
    except IsADirectoryError as error:
        raise CheckpointError(
            f"{path} is a folder: pass a file in it, such as {path}/last.ckpt"
        ) from error
    except Unsealed as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {path!r}: {reason}") from error


def _check_plain(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Refuse everything but plain values and dense tensors, and more values than a model has."""
    left = [(checkpoint, 0)]
    count = 0
    while left:
        value, depth = left.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            damaged(path, "it contains more values, or deeper nesting, than any model")
        if isinstance(value, dict):
            if not all(type(key) in (str, int) for key in value):
                damaged(path, "it has a key that is neither a string nor an integer")
            left += [(inner, depth + 1) for inner in value.values()]
        elif type(value) in (list, tuple):
            left += [(inner, depth + 1) for inner in value]
        elif isinstance(value, Tensor):
            _check_tensor(path, value)
        elif not isinstance(value, bool | int | float | str | NoneType):
            damaged(path, f"it contains a {type(value).__name__}, which is not a plain value")


def _check_finite(path: str | os.PathLike[str], name: str, weight: Tensor) -> None:
    """Refuse the weights of a training that diverged."""
    if weight.is_floating_point() and weight.numel() and not is_all_finite(weight):
        raise CheckpointError(
            f"{path}: its weight {name:.60} is not finite (NaN or infinite), as after training "
            "that diverged; use an earlier checkpoint, or train again with a lower "
            "--model.optimizer.lr"
        )


def is_all_finite(tensor: Tensor) -> Tensor:
    """Whether all of a tensor's values are finite, as a tensor; without a mask as large as it."""
    if tensor.itemsize < 2:  # types of eight bits have no extremes
        tensor = tensor.float()
    return torch.stack(tensor.detach().aminmax()).isfinite().all()


def _check_tensor(path: str | os.PathLike[str], tensor: Tensor) -> None:
    """Refuse tensors larger than their data in the file: sparse or expanded ones."""
    dense = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    if not dense or tensor.nbytes > tensor.untyped_storage().nbytes():
        damaged(path, "it contains a tensor that is not dense")
