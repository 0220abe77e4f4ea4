"""Writes TensorBoard events to the run's own folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoard(TensorBoardLogger):
    """Writes events, starting when training starts.

    Lightning requests the writer before it knows whether a checkpoint fits. If the resume is then
    refused, it must neither leave a file nor hide the events after its step.

    Args:
        folder: folder of the run.
        resume_step: the step a run resumes at, after which old events are hidden; None: a new run.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        purge_step = None if resume_step is None else resume_step + 1
        super().__init__(str(folder.parent), folder.name, "", purge_step=purge_step)
        self.folder, self.begun = folder, False

    @property
    def log_dir(self) -> str:
        """The folder, unchanged: Lightning would expand `~` and `$` in it."""
        return str(self.folder)

    @property
    def experiment(self) -> Any:
        """The writer; None before training starts."""
        return super().experiment if self.begun else None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Only start writing: config.yaml contains the settings."""
        self.begun = True

    def save(self) -> None:
        """Flush the events to the file."""
        if self.begun:
            self.experiment.flush()
