"""Connects `makemoe.checkpoint.format` to Lightning."""

import os
import re
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from makemoe.checkpoint import format as files
from makemoe.errors import UsageError

VERSION = re.compile(r"\d{1,5}(\.\d{1,5}){1,3}([a-z.+]{1,8}\d{0,8}){0,3}", re.ASCII)
OF_THE_RUN = ("loops", "callbacks", "optimizer_states", "optimizer_groups", "lr_schedulers")
"""Entries of a checkpoint that only a resumed run needs."""


class SafeCheckpointIO(CheckpointIO):
    """Atomic writes, and reads that run no code, for every strategy that saves single files.

    Args:
        resumes: whether a run is resumed; otherwise Lightning gets only the weights.
        known: checkpoints that were read already, by path; each is handed over once.
    """

    def __init__(self, resumes: bool = True, known: dict[str, files.Checkpoint] | None = None):
        self.resumes, self.known = resumes, {} if known is None else known

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """See `makemoe.checkpoint.format.write`."""
        if storage_options is not None:
            raise UsageError("storage_options are for remote files; checkpoints are local files")
        files.write(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See `makemoe.checkpoint.format.read`; `weights_only` is always true."""
        checkpoint = self.known.pop(os.fspath(path), None)
        if checkpoint is None:
            checkpoint = files.read(path, map_location or "cpu")
        version = checkpoint.get("pytorch-lightning_version", "")
        if not VERSION.fullmatch(version):
            files.damaged(path, f"its pytorch-lightning_version is {version!r:.60}")
        if self.resumes:
            return checkpoint
        return {key: value for key, value in checkpoint.items() if key not in OF_THE_RUN}

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file if it exists."""
        if os.path.exists(path):
            os.remove(path)
