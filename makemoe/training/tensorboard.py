"""TensorBoard's events, in the run's own folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoard(TensorBoardLogger):
    """Writes events from the start of training on.

    Lightning asks for the writer before it knows whether a checkpoint fits. A resume that is then
    refused must neither leave a file nor hide the events after its step.

    Args:
        folder: of the run.
        resume_step: the step a resumed run goes on from, after which events are hidden.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        purge_step = None if resume_step is None else resume_step + 1
        super().__init__(str(folder.parent), folder.name, "", purge_step=purge_step)
        self.folder, self.begun = folder, False

    @property
    def log_dir(self) -> str:
        """The folder as it is named: Lightning would take `~` and `$` in it for something else."""
        return str(self.folder)

    @property
    def experiment(self) -> Any:
        """The writer; None before training begins."""
        return super().experiment if self.begun else None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Only begin: config.yaml holds the settings."""
        self.begun = True

    def save(self) -> None:
        """Flush what was logged."""
        if self.begun:
            self.experiment.flush()
