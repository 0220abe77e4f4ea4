"""One archive of plain values and tensors: written atomically, read without trust.

It is a ZIP archive as `torch.save` writes it, with a checksum of the whole file as its comment. It
is read with `weights_only=True`, so no code in it runs, and it may contain only plain values and
dense tensors. A checkpoint is such an archive, and so is each piece of one.
"""

import os
import pickle
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, NoReturn, cast

import torch
from torch import Tensor, nn

from makemoe.checkpoint.seal import (
    RUNS_CODE,
    Sealing,
    Unsealed,
    check_archive,
    check_values,
    read_seal,
)
from makemoe.errors import CheckpointError, WriteError
from makemoe.files import open_regular, replacing

SHORT_WRITE = "PytorchStreamWriter", "inline_container", "unexpected pos"
"""Words of torch's errors, one or another, where a file could not be written to its end."""

MOST_VALUES, DEEPEST = 1_000_000, 64
"""Limits for the number of values in an archive and their nesting; no model needs more."""


def save(content: Any, path: Path) -> str:
    """Write an archive atomically: `path` is always the complete old or the complete new one.

    Returns:
        its checksum.

    Raises:
        WriteError: if it cannot be written; `path` is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            sealing = Sealing(file)
            torch.save(content, cast(BinaryIO, sealing))
            return sealing.seal()
    except OSError as error:
        raise WriteError(f"the checkpoint {path}", error) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in SHORT_WRITE):
            raise  # of copying tensors from their device, for example
        raise WriteError(f"the checkpoint {path}", error) from error


def load(path: str | os.PathLike[str], map_location: Any = "cpu") -> tuple[Any, str | None]:
    """Read an archive without running any code in it.

    Returns:
        its content, and its checksum if it has one.

    Raises:
        CheckpointError: for a file that is missing, truncated, no archive, changed since it was
            written, or that would run code. What it contains is up to `check_plain`.
    """
    seal = _check_file(path)
    try:
        # Explicit, because an environment variable can change the default.
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"cannot read {path}: {RUNS_CODE}") from error
    except Exception as error:
        raise CheckpointError(f"cannot read {path}: {_NOT_OURS}") from error
    return content, seal


_NOT_OURS = "it is not a checkpoint, or it is damaged"


def damaged(path: str | os.PathLike[str], what: str) -> NoReturn:
    """Raise the error for a file with invalid contents."""
    raise CheckpointError(f"{path} is damaged or forged: {what}")


def _check_file(path: str | os.PathLike[str]) -> str | None:
    """The checksum of a file; CheckpointError if it is unreadable or has changed."""
    try:
        with open_regular(path) as file:
            check_archive(file)
            seal = read_seal(file)
            check_values(file)
            return seal
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


def check_plain(path: str | os.PathLike[str], content: Any) -> None:
    """Refuse everything but plain values and dense tensors, and more values than a model has."""
    left = [(content, 0)]
    count = 0
    while left:
        value, depth = left.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            damaged(path, "it contains more values, or deeper nesting, than any model")
        if isinstance(value, dict):
            if not all(type(key) in (str, int) for key in value):
                damaged(path, "it has a key that is neither a string nor an integer")
            if hasattr(value, "__dict__"):
                vars(value).clear()  # torch's notes, or what would stand for a method
            left += [(inner, depth + 1) for inner in dict.values(value)]
        elif type(value) in (list, tuple):
            left += [(inner, depth + 1) for inner in value]
        elif isinstance(value, Tensor):
            _check_tensor(path, value)
        elif not isinstance(value, bool | int | float | str | NoneType):
            damaged(path, f"it contains a {type(value).__name__}, which is not a plain value")


def _check_tensor(path: str | os.PathLike[str], tensor: Tensor) -> None:
    """Refuse tensors larger than their data in the file: sparse or expanded ones."""
    if type(tensor) not in (Tensor, nn.Parameter) or vars(tensor):
        damaged(path, "it contains a tensor with attributes")
    dense = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    if not dense or tensor.nbytes > tensor.untyped_storage().nbytes():
        damaged(path, "it contains a tensor that is not dense")
