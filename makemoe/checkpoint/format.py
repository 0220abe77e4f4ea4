"""The one way a checkpoint is written and read: whole or not at all, and without trusting it.

A checkpoint is a file that others may have made. It is a ZIP archive as `torch.save` writes it,
with a checksum of the whole file as its comment. It is read with `weights_only=True`, so that
no code in it runs, and may hold plain values and tensors only; which settings and classes it may
name is decided in `makemoe.checkpoint.held`. Nothing here needs Lightning: sampling reads
checkpoints too.
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
"""Version of what is in a checkpoint; raised when an older makemoe could not read it."""

UNSEALED = 1
"""The version that had no checksum yet, and is otherwise the same."""

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
    "lr_schedulers": list,
    "router_metrics": list,
    "pytorch-lightning_version": str,
}
"""What is what in a checkpoint."""

MOST_VALUES, DEEPEST = 1_000_000, 64
"""Of the values a checkpoint holds; more is no model's."""


def stamp(checkpoint: Checkpoint, tokenizer: dict[str, Any] | None) -> None:
    """Mark a Lightning checkpoint as ours, and put the tokenizer's specification in it."""
    ours = checkpoint.setdefault(KEY, {})
    ours.update(format=FORMAT, version=__version__, tokenizer=tokenizer)


def write(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint so that at every instant `path` holds the old one or the new one, whole.

    Raises:
        WriteError: when the folder or the disk does not take it; `path` is as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            sealing = Sealing(file)
            torch.save(checkpoint, cast(BinaryIO, sealing))
            sealing.seal()
    except (OSError, RuntimeError) as error:
        raise WriteError(f"the checkpoint {path}", error) from error


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> Checkpoint:
    """Read a checkpoint of ours, running none of its code.

    Raises:
        CheckpointError: for a file that is missing, cut short, not a makemoe
            checkpoint, of another version, changed since it was written, or that asks for code to
            be run.
    """
    if "://" in os.fspath(path):
        raise CheckpointError(f"{path} is an address, not a file: download it, then pass the file")
    sealed = _check_file(path)
    try:
        # Said in full: an environment variable can turn the default off.
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"cannot read {path}: it asks for code to be run while loading, which no makemoe "
            "checkpoint does"
        ) from error
    except Exception as error:
        raise CheckpointError(f"cannot read {path}: {_NOT_OURS}") from error
    ours = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a makemoe checkpoint")
    _check_plain(path, checkpoint)
    version, written_by = ours.get("format"), ours.get("version")
    if version not in (UNSEALED, FORMAT):
        raise CheckpointError(
            f"{path} has checkpoint format {version}, written by makemoe {written_by}; "
            f"this is makemoe {__version__}, which reads format {FORMAT}"
        )
    if version == FORMAT and not sealed:
        raise CheckpointError(f"{path} is damaged: it has lost its checksum")
    for key, kind in KINDS.items():
        value = checkpoint.get(key, kind())
        if not isinstance(value, kind) or isinstance(value, bool):
            damaged(path, f"its {key} is a {type(checkpoint[key]).__name__}")
    for name, weight in checkpoint["state_dict"].items():
        if not isinstance(name, str) or not isinstance(weight, Tensor):
            damaged(path, f"its weight {name!r:.60} is no tensor")
    found: Checkpoint = checkpoint
    return found


_NOT_OURS = "it is not a checkpoint, or it is damaged"


def damaged(path: str | os.PathLike[str], what: str) -> NoReturn:
    """Raise the error of a file whose contents cannot be as they are."""
    raise CheckpointError(f"{path} is damaged or forged: {what}")


def _check_file(path: str | os.PathLike[str]) -> bool:
    """Whether the file is sealed; CheckpointError if it cannot be read, or is not as written."""
    try:
        with open_regular(path) as file:
            check_archive(file)
            return has_seal(file)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no checkpoint {path}: `makemoe runs` lists what there is"
        ) from error
    except PermissionError as error:
        raise CheckpointError(f"no permission to read the checkpoint {path}") from error
    except IsADirectoryError as error:
        raise CheckpointError(
            f"{path} is a folder: pass the file in it, such as {path}/last.ckpt"
        ) from error
    except Unsealed as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {path!r}: {reason}") from error


def _check_plain(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Refuse all but plain values and dense tensors, and more of them than any model has."""
    left = [(checkpoint, 0)]
    count = 0
    while left:
        value, depth = left.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            damaged(path, "it holds more values, or deeper ones, than any model")
        if isinstance(value, dict):
            if not all(type(key) in (str, int) for key in value):
                damaged(path, "it has a key that is neither a text nor a number")
            left += [(inner, depth + 1) for inner in value.values()]
        elif type(value) in (list, tuple):
            left += [(inner, depth + 1) for inner in value]
        elif isinstance(value, Tensor):
            _check_tensor(path, value)
        elif not isinstance(value, bool | int | float | str | NoneType):
            damaged(path, f"it holds a {type(value).__name__}, which is no plain value")


def _check_tensor(path: str | os.PathLike[str], tensor: Tensor) -> None:
    """Refuse tensors that are not what they take in the file: sparse ones, expanded ones."""
    dense = tensor.layout is torch.strided and not tensor.is_quantized
    if not dense or tensor.nbytes > tensor.untyped_storage().nbytes():
        damaged(path, "it holds a tensor that is not dense")
