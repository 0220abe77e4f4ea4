"""The one way a checkpoint is written and read: whole or not at all, and without trusting it.

A checkpoint is a file that others may have made. It is read with `weights_only=True`, so that no
code in it runs; what it may name is decided in `makemoe.checkpoint.parts`. Nothing here needs
Lightning: sampling reads checkpoints too.
"""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from makemoe import __version__
from makemoe.errors import CheckpointError, WriteError
from makemoe.files import replacing

FORMAT = 1
"""Version of what is in a checkpoint; raised when an older makemoe could not read it."""

KEY = "makemoe"

Checkpoint = dict[str, Any]


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
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:
        raise WriteError(f"the checkpoint {path}", error) from error


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> Checkpoint:
    """Read a checkpoint of ours, running none of its code.

    Raises:
        CheckpointError: for a file that is missing, cut short, not a checkpoint of makemoe's, of
            another version, or that asks for code to be run.
    """
    if "://" in os.fspath(path):
        raise CheckpointError(f"{path} is an address, not a file: download it, then pass the file")
    if os.path.isdir(path):
        raise CheckpointError(f"{path} is a folder: pass the file in it, such as {path}/last.ckpt")
    try:
        # Said in full: an environment variable can turn the default off.
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no checkpoint {path}: see which there are: ls checkpoints"
        ) from error
    except PermissionError as error:
        raise CheckpointError(f"no permission to read the checkpoint {path}") from error
    except Exception as error:
        raise CheckpointError(f"cannot read {path}: {_why_unreadable(path, error)}") from error
    ours = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of makemoe's")
    if ours.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {ours.get('format')}, written by makemoe "
            f"{ours.get('version')}; this is makemoe {__version__}, which reads format {FORMAT}"
        )
    found: Checkpoint = checkpoint
    return found


def _why_unreadable(path: str | os.PathLike[str], error: Exception) -> str:
    """Torch's many words about a bad file, in a few."""
    with open(path, "rb") as file:
        begins_as_zip = file.read(2) == b"PK"
    if not begins_as_zip:
        return "it is not a checkpoint"
    if not zipfile.is_zipfile(path):
        return "it is cut short"
    if isinstance(error, pickle.UnpicklingError):
        return "it asks for code to be run while loading, which no checkpoint of makemoe's does"
    return "it is not a checkpoint, or it is damaged"
