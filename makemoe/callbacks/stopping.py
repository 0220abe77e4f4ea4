"""Stops a run cleanly on Ctrl-C, SIGTERM or, from SLURM, SIGUSR1."""

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from makemoe import process
from makemoe.training.module import LanguageModel
from makemoe.training.steps import ends_step


class StopOnSignal(Callback):
    """Saves and ends a run at the next step on Ctrl-C or SIGTERM; a second signal ends it at once.

    Under SLURM, SIGUSR1 does the same: it is sent before a job's time is over.

    The handler only sets a flag: collectives inside a signal handler can deadlock. The processes
    agree on the flag every few steps, and after each validation. Before training, after it, and at
    the second Ctrl-C, signals go to their previous handlers.

    Attributes:
        received: the signal; None: none so far.
        agree_every: number of steps after which the processes agree; one process stops at once.
    """

    AGREE_EVERY = 10

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.agree_every = 1
        self._before: dict[signal.Signals, Any] = {}
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        self._trainer = trainer
        process.stops = pl_module.balance.flag = False
        self.agree_every = 1 if pl_module.group.size == 1 else self.AGREE_EVERY
        of_slurm = [signal.SIGUSR1] if process.is_slurm() else []
        for number in (signal.SIGINT, signal.SIGTERM, *of_slurm):
            with suppress(ValueError):  # not in the main thread: the caller handles signals
                self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            process.stops = True
            self._model().balance.flag = True
            self._acknowledge()
            return
        before = self._before.get(signal.Signals(number))
        if number == signal.SIGINT and callable(before):
            before(number, frame)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _acknowledge(self) -> None:
        """Report at once what happens; without `print`, which the signal may have interrupted."""
        assert self._trainer is not None
        assert self.received is not None
        if not self._trainer.is_global_zero:
            return
        if self.received == signal.SIGTERM and process.is_elastic():
            return  # torchrun also sends it because another process has ended
        soon = "this step" if self.agree_every == 1 else f"at most {self.agree_every} steps"
        first = "this validation" if self._trainer.validating else soon
        line = f"{self.received.name}: saving and stopping after {first}"
        if self.received == signal.SIGINT:
            line += "; Ctrl-C again stops at once without saving"
        # On a terminal, the current line already shows the progress bar and ^C.
        begin = "\n" if os.isatty(2) else ""
        with suppress(OSError):
            os.write(2, f"{begin}{line}\n".encode())

    # Runs before LastCheckpoint's hooks of the same names, which then see that they must save.
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not ends_step(trainer) or trainer.global_step % self.agree_every:
            return
        flags = self._model().balance.flags
        if self.agree_every == 1 or flags is None:
            self._stop_if_told(trainer)
        elif flags > 0:
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_told(trainer)

    def _stop_if_told(self, trainer: Trainer) -> None:
        """End the run if one of its processes received a signal."""
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        """End the run, in all its processes."""
        self.received = self.received or signal.SIGTERM
        # Who asks to stop does not mean later.
        trainer.fit_loop.epoch_loop.min_steps, trainer.fit_loop.min_epochs = None, 0
        process.stops = trainer.should_stop = True

    def _model(self) -> LanguageModel:
        """The model that is trained."""
        assert self._trainer is not None
        model = self._trainer.lightning_module
        assert isinstance(model, LanguageModel)
        return model

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._hand_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._hand_back()

    def _hand_back(self) -> None:
        for number, handler in self._before.items():
            # At the end of a fit, Lightning has put back what was there before its own handlers.
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
        self._before.clear()
