"""What a checkpoint holds, and how it is written and read.

A checkpoint may come from anyone, so reading it runs no code and trusts nothing in it: see
`makemoe.checkpoint.archive`. `makemoe.checkpoint.held` decides which settings and classes it may
name. It is one file, or a file with the pieces of its tensors beside it: see
`makemoe.checkpoint.pieces`. This module does not need Lightning, because sampling reads checkpoints
too.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from makemoe import __version__
from makemoe.checkpoint import archive, pieces
from makemoe.checkpoint.archive import check_plain, damaged
from makemoe.checkpoint.in_pieces import InPieces
from makemoe.errors import CheckpointError

FORMAT = 2
"""Version of the format; increased when older versions of makemoe cannot read it."""

UNSEALED = 1
"""The version without a checksum; otherwise the same as version 2."""

KEY = "makemoe"

IN_PIECES = 3
"""The version whose large tensors are in files of their own."""

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
    "averaging": dict,
    "pytorch-lightning_version": str,
}
"""Type of each entry of a checkpoint."""


def stamp(
    checkpoint: Checkpoint, tokenizer: dict[str, Any] | None, text: dict[str, Any] | None = None
) -> None:
    """Mark a Lightning checkpoint as a makemoe checkpoint and add what it needs of the data.

    It is marked as one without a checksum, which Lightning itself may write; `write` adds it.

    Args:
        checkpoint: the checkpoint.
        tokenizer: the specification of the tokenizer.
        text: the fingerprint of the training text, see `makemoe.data.fingerprint`.
    """
    ours = checkpoint.setdefault(KEY, {})
    ours.update(format=UNSEALED, version=__version__, tokenizer=tokenizer)
    if text is not None:
        ours.update(text=text)


def write(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint atomically: `path` is always the complete old or the complete new one.

    Pieces that a former checkpoint there had are removed afterwards.

    Raises:
        WriteError: if it cannot be written; `path` is unchanged.
    """
    path = Path(path)
    ours = checkpoint.get(KEY)
    if isinstance(ours, dict) and repr(ours.get("format")) == repr(UNSEALED):
        checkpoint = checkpoint | {KEY: ours | {"format": FORMAT}}
    archive.save(checkpoint, path)
    pieces.remove_all_but((), path)


def write_index(
    rest: Checkpoint, tensors: list[pieces.Entry], seals: dict[str, str], path: Path
) -> None:
    """Write the file of a checkpoint whose pieces are written already, atomically.

    Pieces that a former checkpoint there had are removed afterwards.

    Args:
        rest: the checkpoint without the tensors in pieces.
        tensors: where these stand in it.
        seals: the checksum of each piece, by name.
        path: the file.

    Raises:
        WriteError: if it cannot be written, or a piece is not there; `path` is unchanged.
    """
    pieces.check_written(seals, path)
    table = {pieces.FILES: seals, pieces.TENSORS: tensors}
    ours = rest[KEY] | {"format": IN_PIECES, pieces.KEY: table}
    archive.save(rest | {KEY: ours}, path)
    pieces.remove_all_but(seals, path)


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> Checkpoint:
    """Read a makemoe checkpoint without running any code in it.

    Tensors in pieces are put together where they are used: see `InPieces`.

    Raises:
        CheckpointError: for a file that is missing, truncated, not a makemoe checkpoint, of a
            different version, changed since it was written, or that would run code; and for a
            missing, foreign or damaged piece.
    """
    if "://" in os.fspath(path):
        raise CheckpointError(f"{path} is a URL, not a file: download it and pass the file")
    while True:
        before = pieces.version_of(path)
        try:
            return _read(path, map_location)
        except pieces.MissingPiece:
            # A run that goes on may have replaced the checkpoint, and removed the former pieces.
            if pieces.version_of(path) == before:
                raise


def _read(path: str | os.PathLike[str], map_location: Any) -> Checkpoint:
    checkpoint, seal = archive.load(path, map_location)
    ours = checkpoint.get(KEY) if type(checkpoint) is dict else None
    if not isinstance(ours, dict) or "state_dict" not in checkpoint:
        pieces.refuse_as_checkpoint(path, checkpoint)
        raise CheckpointError(f"{path} is not a makemoe checkpoint")
    check_plain(path, checkpoint)
    version, written_by = ours.get("format"), ours.get("version")
    if not isinstance(version, int):
        damaged(path, f"its format is a {type(version).__name__}")
    if version not in (UNSEALED, FORMAT, IN_PIECES):
        raise CheckpointError(
            f"{path} has checkpoint format {version}, written by makemoe {written_by}; "
            f"this is makemoe {__version__}, which reads formats up to {IN_PIECES}"
        )
    if version != UNSEALED and seal is None:
        raise CheckpointError(f"{path} is damaged: its checksum is missing")
    if version == IN_PIECES:
        pieces.fill(checkpoint, ours.pop(pieces.KEY, None), Path(path))
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
    if isinstance(tensor, InPieces):
        return torch.stack([is_all_finite(part.tensor) for part in tensor.parts]).all()
    if tensor.itemsize < 2:  # types of eight bits have no extremes
        tensor = tensor.float()
    return torch.stack(tensor.detach().aminmax()).isfinite().all()
