"""Saves a checkpoint in pieces: each process writes the parts of tensors that it holds.

No process ever has more of the model than it trains. All processes write at the same time; when all
have written, the first one makes the pieces the checkpoint. Both happen in threads if training goes
on meanwhile.
"""

import secrets
from concurrent import futures
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor

from makemoe.checkpoint import pieces
from makemoe.checkpoint.beside import Beside, done, has_room, snapshot
from makemoe.checkpoint.format import Checkpoint, write_index
from makemoe.checkpoint.in_pieces import Part
from makemoe.errors import CheckpointError, WriteError
from makemoe.files import PARTIAL
from makemoe.shards import is_sharded, own_part

ASK_EVERY = 10
"""Calls, one per batch, after which processes ask each other whether they have written."""

FAILED = 1 << 32
"""What a process adds, instead of 1, to the number of those that are ready."""

Places = list[list[str | int]]
Parts = dict[int, Part]
"""Parts of tensors, by the number of the tensor."""


class Save(NamedTuple):
    """What one process saves.

    Attributes:
        path: the checkpoint.
        name: of this process's piece.
        rest: the checkpoint without tensors in parts, the same in all processes.
        entries: these tensors' places in it, the same in all processes.
        parts: this process's parts of them, by number.
        is_copy: whether the parts no longer change with the model.
    """

    path: Path
    name: str
    rest: Checkpoint
    entries: list[pieces.Entry]
    parts: Parts
    is_copy: bool

    @staticmethod
    def of(
        checkpoint: Checkpoint, path: Path, save: str, rank: int, beside: bool, spare: Parts
    ) -> "Save":
        """The save of a checkpoint whose tensors are in parts.

        Args:
            checkpoint: the state, with the tensors that processes share as DTensors.
            path: the file.
            save: see `pieces.name_of`.
            rank: this process.
            beside: whether it becomes a checkpoint only later, when the model has changed.
            spare: parts that nobody needs any more, to copy into.
        """
        found: dict[int, tuple[DTensor, Places]] = {}
        rest = without_parts(checkpoint, [], found)
        entries, held = [], {}
        for number, (tensor, places) in enumerate(found.values()):
            entries.append(pieces.entry(places, tensor.shape, tensor.dtype))
            if (part := own_part(tensor, number)) is not None:
                held[number] = part
        room = {number: part.tensor for number, part in spare.items()}
        new = sum(own.nbytes for number, (_, own) in held.items() if number not in room)
        copies = beside and has_room(new)
        parts = {
            number: Part(tuple(begins), compact(own, copies, room.get(number)))
            for number, (begins, own) in held.items()
        }
        rest = snapshot(rest) if beside else rest
        return Save(path, pieces.name_of(save, rank), rest, entries, parts, copies)

    def write_piece(self) -> str | None:
        """Write this process's piece, and return its checksum; None if it has no parts."""
        return pieces.write_piece(self.parts, self.path, self.name) if self.parts else None

    def commit(self, seals: dict[str, str]) -> None:
        """Make the pieces the checkpoint; only the first process calls.

        Args:
            seals: the checksum of each piece, by its name.
        """
        write_index(self.rest, self.entries, seals, self.path)

    def take_back(self) -> None:
        """Remove this process's piece, which will not be part of a checkpoint."""
        pieces.folder_of(self.path).joinpath(self.name).unlink(missing_ok=True)


def without_parts(value: Any, place: list[Any], found: dict[int, tuple[DTensor, Places]]) -> Any:
    """Nested values with None for each tensor in parts.

    Args:
        value: dictionaries and lists, with anything in them.
        place: the keys that lead to it.
        found: tensors in parts are added to it, each once, with their places.
    """
    if isinstance(value, dict):
        return {key: without_parts(v, [*place, key], found) for key, v in value.items()}
    if type(value) is list:
        return [without_parts(v, [*place, n], found) for n, v in enumerate(value)]
    if is_sharded(value):
        found.setdefault(id(value), (value, []))[1].append(place)
        return None
    return value.detach() if isinstance(value, Tensor) else value


def compact(own: Tensor, copies: bool, room: Tensor | None) -> Tensor:
    """A tensor on the CPU that is alone in its memory, because a file holds all of that.

    Args:
        own: the tensor.
        copies: whether it needs memory of its own.
        room: a tensor to copy into: new memory takes several times as long as copying.
    """
    if copies and room is not None and (room.shape, room.dtype) == (own.shape, own.dtype):
        return room.copy_(own)
    is_padded = own.untyped_storage().nbytes() > own.nbytes
    return own.to("cpu", copy=copies or is_padded)


class Pending(NamedTuple):
    """A save that is not a checkpoint yet.

    Attributes:
        save: what is saved.
        writing: the checksum of this process's piece, which is being written.
        committing: None before all pieces are written; then what the first process does.
    """

    save: Save
    writing: Future[str | None]
    committing: Future[None] | None = None

    @property
    def waits_for(self) -> Future[Any]:
        """What comes next."""
        return self.writing if self.committing is None else self.committing


class PiecesIO:
    """Saves checkpoints in pieces together with the other processes.

    All processes must call its methods at the same points, in the same order.

    Attributes:
        beside: whether the next save may go on while training does; see `Saving`.
    """

    def __init__(self) -> None:
        self.beside = False
        self.thread = Beside()
        self.pending: dict[Path, Pending] = {}
        self.spare: Parts = {}
        self.calls = 0

    def save(self, checkpoint: Checkpoint, path: Path, save: str) -> None:
        """Write a checkpoint; the former save of this file ends first.

        Args:
            checkpoint: the state, with the tensors that processes share as DTensors.
            path: the file.
            save: see `pieces.name_of`.

        Raises:
            MakeMoEError: if a process cannot write; the same in all.
        """
        if path in self.pending:
            self.end(path)
        rank = torch.distributed.get_rank()
        spare: Parts = {}
        if self.beside:
            spare, self.spare = self.spare, spare
        one = Save.of(checkpoint, path, save, rank, self.beside, spare)
        begin = self.thread.begin if one.is_copy else done
        self.pending[path] = Pending(one, begin(one.write_piece))
        if not self.beside:
            self.end(path)

    def check_seen(self, folder: Path) -> None:
        """Raise CheckpointError in all processes if one does not see what the first one writes.

        Args:
            folder: where checkpoints will be.
        """
        (name,) = told_by_first(f".{secrets.token_hex(8)}{PARTIAL}")
        probe = folder / name
        error = None
        if torch.distributed.get_rank() == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe.touch()
            except OSError as failed:
                error = WriteError(f"in the folder {folder}", failed)
        (error,) = told_by_first(error)
        is_seen = error is None and are_all(total(int(probe.exists())))
        if torch.distributed.get_rank() == 0:
            probe.unlink(missing_ok=True)
        if error is not None:
            raise error
        if not is_seen:
            raise CheckpointError(
                f"not all machines see the folder {folder}, so they cannot save a checkpoint in "
                "pieces: choose a shared one (--run.root), or give "
                "--trainer.strategy.init_args.gather true"
            )

    def attend(self, wait: bool = False) -> bool:
        """See `Saving`; the processes ask each other only at every few calls."""
        self.calls += bool(self.pending)
        if wait or self.calls % ASK_EVERY == 0:
            for path in list(self.pending):
                if wait:
                    self.end(path)
                else:
                    self.go_on(path)
        return not self.pending

    def end(self, path: Path) -> None:
        """Wait for the pieces of all processes, and make them the checkpoint."""
        while path in self.pending:
            futures.wait([self.pending[path].waits_for])
            self.go_on(path)

    def go_on(self, path: Path) -> None:
        """Commit a save that all processes have written, or end one that is committed."""
        pending = self.pending[path]
        here = pending.waits_for
        failed = here.done() and here.exception() is not None
        ready = total(FAILED if failed else int(here.done()))
        if ready >= FAILED:
            self.fail(path)
        elif are_all(ready):
            if pending.committing is None:
                self.pending[path] = pending._replace(committing=self.commit(pending))
            else:
                del self.pending[path]
                if pending.save.is_copy:
                    self.spare = pending.save.parts

    def commit(self, pending: Pending) -> "Future[None]":
        """Begin to make the pieces the checkpoint, in the first process."""
        save = pending.save
        seals: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(seals, (save.name, pending.writing.result()))
        if torch.distributed.get_rank() > 0:
            return done(lambda: None)
        begin = self.thread.begin if save.is_copy else done
        return begin(partial(save.commit, {name: seal for name, seal in seals if seal is not None}))

    def fail(self, path: Path) -> None:
        """Take back a save that one process or several could not write; raise why, in all."""
        pending = self.pending.pop(path)
        futures.wait([pending.waits_for])
        told: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(told, pending.waits_for.exception())
        pending.save.take_back()
        raise next(error for error in told if error is not None)

    def teardown(self) -> None:
        """Wait for the thread; the pieces do not become a checkpoint, as after a kill."""
        futures.wait([pending.waits_for for pending in self.pending.values()])
        self.pending.clear()
        self.spare = {}


def total(here: int) -> int:
    """The sum of a number over all processes; all must call."""
    count = torch.tensor(here)
    if torch.distributed.get_backend() == "nccl":
        count = count.cuda()
    torch.distributed.all_reduce(count)
    return int(count)


def are_all(count: int) -> bool:
    """Whether so many processes are all of them."""
    return count == torch.distributed.get_world_size()


def told_by_first(*values: Any) -> list[Any]:
    """The first process's values, in all of them."""
    told = list(values)
    torch.distributed.broadcast_object_list(told, 0)
    return told
