"""What `fit` prints at its end: the best loss, the checkpoint, how to use it or resume."""

import math
import shlex
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning_utilities.core.rank_zero import rank_zero_only

from makemoe.callbacks.saving import BestCheckpoint, LastCheckpoint
from makemoe.callbacks.stopping import StopOnSignal
from makemoe.training.bits import bits_of_validation

LONGEST_S = 99 * 86400
"""What a time is cut to; a checkpoint may claim any."""

Kind = TypeVar("Kind", bound=Callback)


class Conclusion(Callback):
    """Prints the result at the end of a fit that no signal stopped.

    The commands it prints can be pasted into a shell.

    Args:
        stop: knows whether a signal ended the run.
        checkpoint: the checkpoint the run was resumed from; None: a new run.
        trust: modules that must be trusted to read the run's checkpoints.
    """

    def __init__(self, stop: StopOnSignal, checkpoint: str | None, trust: Sequence[str]) -> None:
        self.stop, self.checkpoint, self.trust = stop, checkpoint, trust
        self.trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = True

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stop.received is None:  # otherwise the command line reports it
            print("\n".join(self.lines(trainer)), file=sys.stderr)

    def lines(self, trainer: Any) -> list[str]:
        """The lines to print."""
        if trainer.fast_dev_run:
            return [f"fast_dev_run: ended at step {trainer.global_step}; nothing is saved"]
        why = [line for line in [self.why(trainer)] if line]
        return [*why, self.result(trainer)] if self.trained else why

    def why(self, trainer: Any) -> str:
        """Why the run ended, and how to resume it; empty if it has just reached its last step."""
        step, most, timer = trainer.global_step, trainer.max_steps, find(trainer, Timer)
        at_end = 0 < most <= step
        if self.trained and at_end:
            return ""
        left = None if timer is None else timer.time_remaining()
        at = f"step {step} of {most}" if most > 0 else f"step {step}"
        if at_end:
            ended, more = f"nothing to train: already at {at}", f"--trainer.max_steps {2 * step}"
        elif timer is not None and left is not None and left <= 0:
            elapsed = timer.time_elapsed()
            ended = f"--trainer.max_time {in_words(elapsed + left)} ended the run at {at}"
            more = f"--trainer.max_time {in_words(2 * elapsed)}"
        else:
            return f"ended at {at}"
        last = find(trainer, LastCheckpoint)
        path = last.path if self.trained and last is not None else self.checkpoint
        return f"{ended}; to resume: {go_on(path, self.trust, more)}" if path else ended

    def result(self, trainer: Any) -> str:
        """The best loss, and how to sample from its checkpoint or from the last one."""
        best, last = find(trainer, BestCheckpoint), find(trainer, LastCheckpoint)
        if best is not None and best.best_model_score is not None:
            loss = float(best.best_model_score)
            if math.isfinite(loss):
                bits = bits_of_validation(loss, trainer)
                per_byte = "" if bits is None else f", {bits:.4f} bits per byte,"
                step = "" if best.best_step is None else f" at step {best.best_step}"
                kept = self.kept(best.file)
                return f"best val_loss {loss:.4f} nats per token{per_byte}{step}: {kept}"
        at = f"ended at step {trainer.global_step}"
        return f"{at}; no checkpoint was saved" if last is None else f"{at}: {self.kept(last.path)}"

    def kept(self, path: Path) -> str:
        """The path of a checkpoint, and the command that samples from it."""
        trust = "".join(f" --trust {module}" for module in self.trust)
        return f"{path}; sample: makemoe predict --ckpt_path {shlex.quote(str(path))}{trust}"


def go_on(path: Path | str, trust: Sequence[str], more: str = "") -> str:
    """The command that resumes from a checkpoint."""
    words = ["makemoe fit --ckpt_path", shlex.quote(str(path))]
    words += [f"--trust {module}" for module in trust]
    return " ".join([*words, more]).rstrip()


def find(trainer: Any, kind: type[Kind]) -> Kind | None:
    """The trainer's callback of the given class."""
    return next((one for one in trainer.callbacks if isinstance(one, kind)), None)


def in_words(seconds: float) -> str:
    """A time in the format of `--trainer.max_time`, DD:HH:MM:SS, rounded up to seconds."""
    time = timedelta(seconds=math.ceil(min(seconds, LONGEST_S)))
    minutes, rest = divmod(time.seconds, 60)
    return f"{time.days:02d}:{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
