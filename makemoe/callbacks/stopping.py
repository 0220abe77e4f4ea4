"""Ending a run cleanly when it is told to stop."""

import signal
from contextlib import suppress
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from makemoe.callbacks.saving import validates_now


class StopOnSignal(Callback):
    """Ends a run at the next step on Ctrl-C or SIGTERM, saved; a second signal ends it at once.

    The handler only sets a flag: collectives inside a signal handler can deadlock. The processes
    agree on the flag every few steps.

    Attributes:
        received: the signal, or None.
    """

    AGREE_EVERY = 10

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread: whoever runs us handles signals
                self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = signal.Signals(number)

    # Before LastCheckpoint's hook of the same name, which then finds the step worth saving.
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stop = self.received is not None
        if trainer.world_size > 1:
            if trainer.global_step % self.AGREE_EVERY:
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            self.received = self.received or signal.SIGTERM
            trainer.should_stop = True
            if not validates_now(trainer):
                # Lightning would validate once more, which may take minutes and is not the run's.
                trainer.limit_val_batches = 0

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
