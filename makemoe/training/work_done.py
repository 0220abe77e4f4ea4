"""How much a run has computed so far."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from makemoe.data.datamodule import text_data
from makemoe.training.resuming import damaged
from makemoe.training.work import Work

WORK_DONE = "work_done"
"""Key under which a checkpoint stores what its run has spent."""

MOST = 10**30
"""More than any run spends."""


class WorkDone:
    """What a run has spent on training so far, over all processes, also before it was resumed.

    Args:
        work: of the model that is trained.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.tokens, self.flops = 0, 0

    def add(self, tokens: int) -> None:
        """Count tokens that are trained on; the same one counts every time."""
        self.tokens += tokens
        self.flops += tokens * self.work.flops

    def figures(self) -> dict[str, int]:
        """The counts, by the names under which they are saved."""
        return {"tokens": self.tokens, "flops": self.flops}

    def logged(self) -> dict[str, float]:
        """The counts and the size of the model, by the names under which they are logged."""
        size = {"parameters": self.work.parameters, "active_parameters": self.work.active}
        return {**self.figures(), **size}

    def resume(self, checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
        """Continue the counts of a checkpoint.

        Older ones have none: then those of as many steps as it has, if no setting has changed.
        """
        if WORK_DONE in checkpoint:
            self.take_up(checkpoint[WORK_DONE])
            return
        self.tokens = self.flops = 0
        if (data := text_data(trainer)) is not None:
            batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
            self.add(batches * data.batch_size * data.block_size)

    def take_up(self, held: object) -> None:
        """Continue counts that a checkpoint holds; CheckpointError if they are not counts."""
        names = self.figures().keys()
        if not isinstance(held, dict) or held.keys() != names:
            raise damaged(f"its {WORK_DONE} is not the counts {', '.join(names)}")
        for name, count in held.items():
            if type(count) is not int or not 0 <= count < MOST:
                raise damaged(f"its {WORK_DONE} has {name} that are not a count")
        self.tokens, self.flops = held["tokens"], held["flops"]
