"""Saves `last.ckpt`, to resume from, and `best.ckpt`."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from makemoe.checkpoint.beside import Saving
from makemoe.checkpoint.format import KEY
from makemoe.checkpoint.lightning_io import SafeCheckpointIO
from makemoe.errors import CheckpointError, MakeMoEError, NotFiniteError
from makemoe.parallel import Sharded
from makemoe.training.steps import ends_step, validates_now


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt`, from which a run resumes as if it had never stopped.

    It is written every few steps, when the run is stopped, and at its end, always where a step
    ends. If a validation is due at the same step, it is written after that validation, so that
    resuming neither repeats nor skips it. The base class is `Checkpoint` because Lightning calls
    those callbacks last, so what the others learn from a validation is saved too. Both files may be
    written while training goes on; this callback waits for them at the end of the run.

    Args:
        folder: folder of the run.
        every_n_steps: optimizer steps between two writes.
        settings: plain values that are stored in the checkpoint (trainer, seed, run).
    """

    def __init__(self, folder: Path, every_n_steps: int, settings: dict[str, Any]) -> None:
        self.path, self.every_n_steps, self.settings = folder / "last.ckpt", every_n_steps, settings
        self.saved_step = -1
        self.good: dict[int, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Only the first process is certain to know the run's folder.
        self.path = trainer.strategy.broadcast(self.path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None:
            self.good = {trainer.global_step: str(trainer.ckpt_path)}
        if isinstance(trainer.strategy, Sharded) and not trainer.strategy.gather:
            trainer.strategy.pieces.check_seen(self.path.parent)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint.setdefault(KEY, {})["settings"] = self.settings

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.attend(trainer)
        if self.is_due(trainer) and not validates_now(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.is_due(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self.saved_step and ends_step(trainer):
            self.save(trainer)
        self.attend(trainer, wait=True)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether a step has ended at which a checkpoint is due."""
        step = trainer.global_step
        if step == self.saved_step or not ends_step(trainer):
            return False
        ends = step == trainer.max_steps or (
            trainer.should_stop and trainer.fit_loop._can_stop_early
        )
        return ends or step % self.every_n_steps == 0

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, NotFiniteError):  # which all processes raise together
            with suppress(MakeMoEError):
                self.attend(trainer, wait=True)
            exception.kept |= self.good

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint, perhaps while training goes on; all processes take part."""
        with beside_training(trainer):
            trainer.save_checkpoint(self.path)
        self.saved_step = trainer.global_step

    def attend(self, trainer: Trainer, wait: bool = False) -> None:
        """Raise what went wrong in writing; all processes take part."""
        is_written = [saving.attend(wait) for saving in savings(trainer)]
        if all(is_written) and self.saved_step >= 0:
            self.good = {self.saved_step: str(self.path)}


def saves_now(trainer: Trainer) -> bool:
    """Whether `last.ckpt` is due after this step."""
    return any(one.is_due(trainer) for one in last_checkpoints(trainer))


def last_checkpoints(trainer: Trainer) -> list[LastCheckpoint]:
    """What saves `last.ckpt`, if anything does."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [one for one in callbacks if isinstance(one, LastCheckpoint)]


def savings(trainer: Trainer) -> list[Saving]:
    """What saves checkpoints and may do it while training goes on."""
    strategy = trainer.strategy
    pieces: list[Saving] = [strategy.pieces] if isinstance(strategy, Sharded) else []
    io = strategy.checkpoint_io
    return [*pieces, *([io] if isinstance(io, SafeCheckpointIO) else [])]


@contextmanager
def beside_training(trainer: Trainer) -> Iterator[None]:
    """Let checkpoints that are saved in this context be written while training goes on.

    If there is a LastCheckpoint, which attends to them.
    """
    found = savings(trainer) if last_checkpoints(trainer) else []
    for saving in found:
        saving.beside = True
    try:
        yield
    finally:
        for saving in found:
            saving.beside = False


class BestCheckpoint(ModelCheckpoint):
    """Saves `best.ckpt`, of the lowest validation loss, even if the run's folder was moved.

    Args:
        folder: folder of the run.

    Attributes:
        file: its path, as the user wrote it.
        best_step: its step; None if unknown.
    """

    def __init__(self, folder: Path) -> None:
        # Absolute, because Lightning would expand a `~` in the path to the user's home.
        home = folder.absolute()
        super().__init__(
            home, "best", monitor="val_loss", save_top_k=1, enable_version_counter=False
        )
        self.file, self.path = folder / "best.ckpt", str(home / "best.ckpt")
        self.is_there = False
        self.best_step: int | None = None
        self.saved_step: int | None = None
        """Step of the best checkpoint that is being saved; `best_step` once that has succeeded."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        # All processes must agree on whether the file exists; only the first one knows the folder.
        found = (self.file, self.path, Path(self.path).exists())
        self.file, self.path, self.is_there = trainer.strategy.broadcast(found)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not ends_step(trainer):
            return  # in a trainer that counts batches; a checkpoint would lack the gradients so far
        before, self.saved_step = self.best_model_score, trainer.global_step
        try:
            with beside_training(trainer):
                super().on_validation_end(trainer, pl_module)
        finally:
            self.saved_step = None
        if self.best_model_score is not before:
            self.best_step = trainer.global_step

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, NotFiniteError) and self.best_step is not None:
            exception.kept.setdefault(self.best_step, str(self.file))

    def state_dict(self) -> dict[str, Any]:
        """The state of ModelCheckpoint, and the step."""
        step = self.best_step if self.saved_step is None else self.saved_step
        return super().state_dict() | {"best_step": step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the earlier best if it is in this folder; Lightning forgets a moved one."""
        score = state_dict.get("best_model_score") if isinstance(state_dict, dict) else self
        if score is not None and not (isinstance(score, Tensor) and score.numel() == 1):
            raise CheckpointError(
                "the checkpoint is damaged or forged: its best loss is not a number"
            )
        if score is not None and self.is_there:
            self.best_model_score = self.kth_value = self.current_score = score
            self.best_model_path = self.kth_best_model_path = self.path
            self.best_k_models = {self.path: score}
            self.best_step = state_dict.get("best_step")
