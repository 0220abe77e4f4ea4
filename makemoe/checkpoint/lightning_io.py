"""Connects `makemoe.checkpoint.format` to Lightning."""

import os
import re
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from makemoe.checkpoint import format as files
from makemoe.checkpoint import pieces
from makemoe.checkpoint.archive import damaged
from makemoe.checkpoint.beside import Beside, has_room, size_of, snapshot
from makemoe.errors import UsageError

VERSION = re.compile(r"\d{1,5}(\.\d{1,5}){1,3}([a-z.+]{1,8}\d{0,8}){0,3}", re.ASCII)
OF_THE_RUN = (
    *("loops", "callbacks", "optimizer_states", "optimizer_groups", "lr_schedulers"),
    "averaging",
)
"""Entries of a checkpoint that only a resumed run needs."""


class SafeCheckpointIO(CheckpointIO):
    """Atomic writes, and reads that run no code, for every strategy that saves single files.

    Args:
        resumes: whether a run is resumed; otherwise Lightning gets only the weights.
        known: checkpoints that were read already, by path; each is handed over once.

    Attributes:
        beside: whether a save may go on while training does; see `Saving`.
    """

    def __init__(self, resumes: bool = True, known: dict[str, files.Checkpoint] | None = None):
        self.resumes, self.known = resumes, {} if known is None else known
        self.beside = False
        self.thread = Beside()
        self.pending: dict[str, Future[None]] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """See `makemoe.checkpoint.format.write`; the former save of this file ends first."""
        if storage_options is not None:
            raise UsageError("storage_options are for remote files; checkpoints are local files")
        path = os.fspath(path)
        if path in self.pending:
            self.pending.pop(path).result()
        if self.beside and has_room(size_of(checkpoint)):
            write = partial(files.write, snapshot(checkpoint), path)
            self.pending[path] = self.thread.begin(partial(after, [*self.pending.values()], write))
        else:
            after([*self.pending.values()], partial(files.write, checkpoint, path))

    def attend(self, wait: bool = False) -> bool:
        """See `Saving`."""
        for path, writing in list(self.pending.items()):
            if wait or writing.done():
                del self.pending[path]
                writing.result()
        return not self.pending

    def teardown(self) -> None:
        """Wait for the thread; what went wrong no longer matters, since something else did too."""
        futures.wait(self.pending.values())
        self.pending.clear()

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See `makemoe.checkpoint.format.read`; `weights_only` is always true."""
        checkpoint = self.known.pop(os.fspath(path), None)
        if checkpoint is None:
            checkpoint = files.read(path, map_location or "cpu")
        version = checkpoint.get("pytorch-lightning_version", "")
        if not VERSION.fullmatch(version):
            damaged(path, f"its pytorch-lightning_version is {version!r:.60}")
        if self.resumes:
            return checkpoint
        return {key: value for key, value in checkpoint.items() if key not in OF_THE_RUN}

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file if it exists, and its pieces."""
        if os.path.exists(path):
            os.remove(path)
        pieces.remove_all_but((), Path(path))


def after(writing: Sequence[Future[None]], write: Callable[[], None]) -> None:
    """Write a checkpoint after others, which it may name: not if one of them fails."""
    for other in writing:
        other.result()
    write()
