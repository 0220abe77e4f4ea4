"""Checkpoints in pieces: their large tensors are in files beside them, one per process.

    last.ckpt           all that is small, where the tensors belong, the checksums of the pieces
    last.ckpt.pieces/   4f0a6ce1d2b39785-0.ckpt ...: parts of tensors, each with its place

Pieces have new names each time. Once all are on the disk, replacing last.ckpt makes them the
checkpoint, and the former pieces are removed. So a process that is killed leaves the old checkpoint
or the new one, and perhaps pieces of neither, which the next save removes.
"""

import math
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from makemoe.checkpoint.archive import check_plain, damaged, load, save
from makemoe.checkpoint.in_pieces import InPieces, Part
from makemoe.errors import CheckpointError
from makemoe.files import is_partial

KEY, FILES, TENSORS = "pieces", "files", "tensors"
"""Under which a checkpoint has the checksum of each piece, and which tensors are in pieces."""

PIECE, PARTS = "makemoe_piece", "parts"
VERSION = 1

NAME = re.compile(r"[0-9a-f]{16}-\d{1,6}\.ckpt", re.ASCII)
"""Name of a piece: that of the save, and the process."""

MOST_FILES, MOST_DIMENSIONS = 4096, 64
LARGEST = 1 << 62
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}

Entry = dict[str, Any]
"""A tensor in pieces: its `places` in the checkpoint, as lists of keys, its `shape` and `dtype`."""


class MissingPiece(CheckpointError):
    """A piece that is not there."""


def folder_of(path: Path) -> Path:
    """The folder of a checkpoint's pieces."""
    return path.with_name(f"{path.name}.pieces")


def name_of(save: str, rank: int) -> str:
    """The name of a process's piece.

    Args:
        save: 16 hexadecimal digits that are the same in all processes and new each time.
        rank: the process.
    """
    return f"{save}-{rank}.ckpt"


def entry(places: list[list[str | int]], shape: torch.Size, dtype: torch.dtype) -> Entry:
    """The entry of a tensor in the table of a checkpoint."""
    return {
        "places": places,
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
    }


# -- writing


def write_piece(parts: Mapping[int, Part], path: Path, name: str) -> str:
    """Write a piece of a checkpoint, atomically.

    Args:
        parts: one or more parts, by the number of their tensor in the table.
        path: the checkpoint.
        name: of the piece.

    Returns:
        its checksum.

    Raises:
        WriteError: if it cannot be written.
    """
    listed = [[number, list(part.begins), part.tensor] for number, part in parts.items()]
    return save({PIECE: VERSION, PARTS: listed}, folder_of(path) / name)


def check_written(names: Collection[str], path: Path) -> None:
    """Raise CheckpointError if a piece that another process has written is not there."""
    folder = folder_of(path)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {len(missing)} of {len(names)} pieces are not in "
            f"{folder}, although other processes wrote them: let all machines see the same folder "
            "(--run.root), or give --trainer.strategy.init_args.gather true"
        )


def remove_all_but(names: Collection[str], path: Path) -> None:
    """Remove all other pieces of a checkpoint, and its folder of pieces if it becomes empty."""
    folder = folder_of(path)
    if not folder.is_dir():
        return
    with suppress(OSError):  # they cost space, but no checkpoint
        for name in os.listdir(folder):
            if name not in names and (NAME.fullmatch(name) or is_partial(name)):
                (folder / name).unlink(missing_ok=True)
        if not names:
            folder.rmdir()


# -- reading


def version_of(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """What changes if a file is replaced; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def refuse_as_checkpoint(path: str | os.PathLike[str], content: Any) -> None:
    """Raise CheckpointError for a piece, if a file is one."""
    if isinstance(content, dict) and PIECE in content:
        folder = Path(path).parent
        raise CheckpointError(
            f"{path} is a piece of a checkpoint: pass {folder.with_name(folder.stem)}"
        )


def refuse_unfilled(checkpoint: dict[str, Any]) -> None:
    """Raise CheckpointError for one in pieces that another reader than makemoe's has read."""
    ours = checkpoint.get("makemoe")
    if isinstance(ours, dict) and KEY in ours:
        raise CheckpointError(
            "the checkpoint is in pieces, which only makemoe reads: use `makemoe.load`, or make "
            "one file of it with `makemoe consolidate`"
        )


def fill(checkpoint: dict[str, Any], table: Any, path: Path) -> None:
    """Put the tensors in pieces where they belong.

    Args:
        checkpoint: what was read from the file; changed in place.
        table: what it has under `KEY`.
        path: the file.

    Raises:
        CheckpointError: for a piece that is missing, damaged or of another checkpoint, and for a
            table that is not one.
    """
    seals, entries = checked(table, path)
    parts: list[list[Part]] = [[] for _ in entries]
    for name, seal in seals.items():
        for number, part in read_piece(path, name, seal).items():
            if number >= len(entries):
                damaged(path, f"its piece {name} has a tensor that it does not name")
            parts[number].append(part)
    for number, (one, held) in enumerate(zip(entries, parts, strict=True)):
        dtype, shape = DTYPES[one["dtype"]], one["shape"]
        if any(part.tensor.dtype != dtype for part in held) or not are_whole(held, shape):
            damaged(path, f"the parts of its tensor {number} are not the whole of it")
        filled = [part for part in held if part.tensor.numel()]
        for place in one["places"]:
            put(checkpoint, place, InPieces(shape, dtype, filled), path)


def checked(table: Any, path: Path) -> tuple[dict[str, str], list[Entry]]:
    """The two parts of a table; CheckpointError if it is not one."""
    if not isinstance(table, dict) or table.keys() != {FILES, TENSORS}:
        damaged(path, "it does not name its pieces")
    seals, entries = table[FILES], table[TENSORS]
    if not isinstance(seals, dict) or len(seals) > MOST_FILES:
        damaged(path, "it does not name its pieces")
    for name, seal in seals.items():
        # A name only: a path could lead anywhere.
        if not isinstance(name, str) or not NAME.fullmatch(name) or not isinstance(seal, str):
            damaged(path, f"{name!r:.60} is not the name of a piece")
    if not isinstance(entries, list) or not all(map(is_entry, entries)):
        damaged(path, "its tensors in pieces are not described")
    return seals, entries


def is_entry(one: Any) -> bool:
    """Whether a value describes a tensor in pieces."""
    return (
        isinstance(one, dict)
        and one.keys() == {"places", "shape", "dtype"}
        and isinstance(one["dtype"], str)
        and one["dtype"] in DTYPES
        and are_counts(one["shape"])
        and len(one["shape"]) <= MOST_DIMENSIONS
        and math.prod(max(1, size) for size in one["shape"]) <= LARGEST
        and isinstance(one["places"], list)
        and all(isinstance(place, list) and place for place in one["places"])
    )


def are_counts(values: Any) -> bool:
    """Whether a value is a list of sizes."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= LARGEST for value in values
    )


def read_piece(path: Path, name: str, seal: str) -> dict[int, Part]:
    """The parts in a piece, by the number of their tensor, mapped from its file.

    Args:
        path: the checkpoint.
        name: of the piece.
        seal: the checksum that the checkpoint has of it.
    """
    piece = folder_of(path) / name
    try:
        content, found = load(piece)
    except CheckpointError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise MissingPiece(
                f"{path}: its piece {piece} is missing; move and copy a checkpoint together with "
                f"the folder {piece.parent.name}"
            ) from error
        raise
    if found != seal:
        raise CheckpointError(
            f"{path}: its piece {piece} is one of another checkpoint, by another run or at another "
            "step"
        )
    check_plain(piece, content)
    if not isinstance(content, dict) or repr(content.get(PIECE)) != repr(VERSION):
        damaged(piece, "it is not a piece")
    parts: dict[int, Part] = {}
    listed = content.get(PARTS)
    if not isinstance(listed, list) or not listed:
        refuse(piece)
    for one in listed:
        if not isinstance(one, list) or len(one) != 3:
            refuse(piece)
        number, begins, tensor = one
        if type(number) is not int or number < 0 or number in parts or not are_counts(begins):
            refuse(piece)
        if not isinstance(tensor, Tensor) or tensor.ndim != len(begins):
            refuse(piece)
        parts[number] = Part(tuple(begins), tensor)
    return parts


def refuse(piece: Path) -> NoReturn:
    """Raise the error for a piece that has other things than parts of tensors."""
    damaged(piece, "it has no parts of tensors")


def are_whole(parts: list[Part], shape: list[int]) -> bool:
    """Whether parts cover a tensor of this shape, each number once."""
    if any(part.tensor.ndim != len(shape) for part in parts):
        return False
    if sum(part.tensor.numel() for part in parts) != math.prod(shape):
        return False
    parts = [part for part in parts if part.tensor.numel()]
    if not parts:
        return True
    begins_PD = torch.tensor([part.begins for part in parts], dtype=torch.int64)
    sizes_PD = torch.tensor([list(part.tensor.shape) for part in parts], dtype=torch.int64)
    ends_PD = begins_PD + sizes_PD
    if (ends_PD > torch.tensor(shape, dtype=torch.int64)).any():
        return False
    # As many numbers as the whole has, all inside: so there is a hole only where two overlap.
    common_PP = (begins_PD[:, None] < ends_PD) & (begins_PD < ends_PD[:, None])
    return int(common_PP.all(-1).sum()) == len(parts)


def put(checkpoint: dict[str, Any], place: list[Any], tensor: Tensor, path: Path) -> None:
    """Put a tensor at its place, where None stands so far."""
    inside: Any = checkpoint
    *way, last = place
    try:
        for key in way:
            if not isinstance(inside, dict | list):
                break
            inside = inside[key]
        if isinstance(inside, dict | list) and inside[last] is None:
            inside[last] = tensor
            return
    except (KeyError, IndexError, TypeError):
        pass
    damaged(path, f"there is no place {place!r:.60} for a tensor in it")
