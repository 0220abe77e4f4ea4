"""Lightning's door to our checkpoints."""

import os
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from makemoe.checkpoint import format as files
from makemoe.errors import UsageError


class SafeCheckpointIO(CheckpointIO):
    """Atomic writes and code-free reads for every strategy that saves single files."""

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
        return files.read(path, map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file, if it is there."""
        if os.path.exists(path):
            os.remove(path)
