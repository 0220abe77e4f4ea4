"""What a folder for other programs holds, and how it is written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from makemoe.errors import UsageError, WriteError
from makemoe.exchange.tensors import FILE, write_tensors
from makemoe.files import new_folder, remove_partial


class Contents(NamedTuple):
    """The contents of a folder.

    Attributes:
        kind: what it is, in words.
        tensors: the weights.
        files: all other files, by name.
    """

    kind: str
    tensors: dict[str, Tensor]
    files: dict[str, bytes]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights; a bias that is kept more exactly does not count."""
        return next(iter(self.tensors.values())).dtype


def as_json(values: Mapping[str, Any]) -> bytes:
    """A JSON file."""
    return (json.dumps(values, indent=2) + "\n").encode()


def check_target(path: Path) -> None:
    """Raise UsageError if a new folder cannot be at `path`."""
    if path.exists() or path.is_symlink():
        raise UsageError(f"--to {path} already exists: choose another folder")
    if not path.parent.is_dir():
        raise UsageError(f"--to {path}: there is no folder {path.parent}; create it first")


def write_folder(contents: Contents, path: Path) -> None:
    """Write a new folder, whole or not at all.

    Raises:
        WriteError: if it cannot be written.
    """
    try:
        remove_partial(path.parent, of=path.name)
        with new_folder(path) as folder:
            for name, data in contents.files.items():
                (folder / name).write_bytes(data)
            write_tensors(contents.tensors, folder / FILE)
    except OSError as error:
        raise WriteError(f"the folder {path}", error) from error
