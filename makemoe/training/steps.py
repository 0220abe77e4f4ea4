"""Training counts optimizer steps: it validates, saves and ends only where one ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch.optim import Optimizer

from makemoe.data.datamodule import overfit_batches


class StepLoop(_TrainingEpochLoop):
    """Lightning's loop over training batches, counting steps where Lightning counts batches.

    - A whole number as `val_check_interval` is a number of optimizer steps.
    - Inside an accumulated step nothing is validated and the run does not end, because a checkpoint
      does not hold the gradients so far. A run that is told to stop ends with its current step.
    - A run that is told to stop does not validate once more, so that its files are those of a run
      that goes on.
    - A resumed run begins with a whole step, also if a step now has another number of batches.
    """

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        if self._should_accumulate():
            return False
        every = self.trainer.val_check_interval
        if type(every) is int:
            return self._should_check_val_epoch() and self.global_step % every == 0
        return super()._should_check_val_fx(data_fetcher)

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing, where Lightning broadcasts a flag with each batch.

        `StopOnSignal` handles signals, and lets the processes agree on them.
        """

    @property
    def done(self) -> bool:
        """Whether to leave the loop."""
        return super().done and not self._should_accumulate()

    def reset(self) -> None:
        """Prepare a run, or continue a resumed one at the beginning of a step."""
        resumes = self.restarting
        if resumes and self._should_accumulate():
            begun = self.batch_progress.current.ready % self.trainer.accumulate_grad_batches
            for name in ("ready", "started", "processed", "completed"):
                count = getattr(self.batch_progress.current, name)
                setattr(self.batch_progress.current, name, count - begun)
        super().reset()
        if resumes:
            # The number of steps that are logged. Lightning derives it from whether a validation
            # was due at this batch, which the user may have changed.
            fetcher = self.trainer.fit_loop._data_fetcher
            assert fetcher is not None
            skips = self.restarted_on_last and self._should_check_val_fx(fetcher)
            self._batches_that_stepped = self.global_step - skips


def count_steps(trainer: Trainer) -> None:
    """Make a new trainer count steps: see `StepLoop`."""
    own = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = StepLoop(trainer, own.min_steps, own.max_steps)
    # With `min_steps`, Lightning also asks for an epoch, which has no end here.
    trainer.fit_loop.min_epochs = 0
    if overfit_batches(trainer):
        # The loader repeats its batches. An epoch of them would end in the middle of a step.
        trainer.limit_train_batches = 1.0


def ends_step(trainer: Trainer) -> bool:
    """Whether the training batch that is processed, or was processed last, ends a step."""
    return not trainer.fit_loop._should_accumulate()


def logs_step(trainer: Any) -> bool:
    """Whether metrics are logged for the step that is running.

    Lightning's own answer is also yes once a run is told to stop, at whatever step.
    """
    every: int = trainer.log_every_n_steps
    return every > 0 and (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0


def validates_now(trainer: Trainer) -> bool:
    """Whether a validation follows the training batch that has just ended."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


@contextmanager
def steps_taken(optimizer: Optimizer | LightningOptimizer) -> Iterator[list[bool]]:
    """A list to which each step of the optimizer adds whether it changed the weights.

    A gradient scaler whose gradients overflowed does not call the optimizer; a fused one it does
    call, with `found_inf`, to skip the step by itself.
    """
    taken: list[bool] = []

    def note(stepped: Optimizer, *_: Any) -> None:
        taken.append(not bool(getattr(stepped, "found_inf", False)))

    inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
    hook = inner.register_step_post_hook(note)
    try:
        yield taken
    finally:
        hook.remove()
