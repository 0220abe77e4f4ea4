"""Makes one file of a checkpoint in pieces."""

import os
import secrets
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from makemoe.checkpoint.format import IN_PIECES, KEY, UNSEALED, Checkpoint, write
from makemoe.checkpoint.in_pieces import InPieces
from makemoe.errors import UsageError, WriteError
from makemoe.files import PARTIAL


def consolidate(checkpoint: Checkpoint, path: str, to: Path) -> None:
    """Write a checkpoint in pieces as one file.

    Whole tensors are put together on the disk, next to the new file, so it needs twice its size
    there while it is written, but no more memory than the largest tensor.

    Args:
        checkpoint: the checkpoint, as it was read.
        path: where it was read from, for messages.
        to: the new file.

    Raises:
        UsageError: if the checkpoint is one file already.
        WriteError: if it cannot be written; nothing is left behind.
    """
    if checkpoint[KEY]["format"] != IN_PIECES:
        raise UsageError(f"--ckpt_path {path} is one file already: copy it")
    try:
        whole = on_disk(checkpoint, to.parent, {})
    except OSError as error:
        raise WriteError(f"the checkpoint {to}", error) from error
    write(whole | {KEY: checkpoint[KEY] | {"format": UNSEALED}}, to)


def on_disk(value: Any, folder: Path, known: dict[int, Tensor]) -> Any:
    """Nested values with each tensor in pieces put together in a file that has no name.

    Args:
        value: dictionaries and lists, with anything in them.
        folder: where the disk has space.
        known: the tensors put together so far; those with several places are one afterwards.
    """
    if isinstance(value, dict):
        return {key: on_disk(inner, folder, known) for key, inner in value.items()}
    if isinstance(value, list):
        return [on_disk(inner, folder, known) for inner in value]
    if not isinstance(value, InPieces):
        return value
    if id(value) not in known:
        known[id(value)] = value.put_together(mapped(value, folder))
    return known[id(value)]


def mapped(like: Tensor, folder: Path) -> Tensor:
    """An empty tensor of the shape and dtype of another, in a file that vanishes with it."""
    whole = torch.empty(0, dtype=like.dtype)
    if not like.nbytes:
        return whole.reshape(like.shape)
    file = folder / f".{secrets.token_hex(8)}{PARTIAL}"
    try:
        with file.open("xb") as empty:
            # Written through a mapping, a full disk would end the process without a word.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(empty.fileno(), 0, like.nbytes)
        storage: Any = torch.UntypedStorage.from_file(str(file), True, like.nbytes)
    finally:
        file.unlink(missing_ok=True)
    stride = torch.empty(like.shape, device="meta").stride()
    return whole.set_(storage, 0, like.shape, stride)
