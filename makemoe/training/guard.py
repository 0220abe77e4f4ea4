"""Ends training at a loss or a weight that is not finite, in all processes at once."""

from collections.abc import Callable
from functools import partial

from lightning.pytorch import Trainer
from torch import Tensor

from makemoe.errors import NotFiniteError
from makemoe.group import ALONE, Group
from makemoe.model.transformer import MoETransformer
from makemoe.shards import has_shards
from makemoe.training.finite import WAYS_OUT, Finding, Watch, origin, spoilt, too_late


class Guard:
    """Raises NotFiniteError, with the cause as far as it can be found.

    Args:
        net: the model that is trained.
    """

    def __init__(self, net: MoETransformer) -> None:
        self.net, self.watch = net, Watch()
        self.group: Group = ALONE

    def join(self, group: Group) -> None:
        """Stop together with the processes of this group; what was found before is forgotten."""
        self.group, self.watch = group, Watch()

    def see(
        self, loss: Tensor, trainer: Trainer, again: Callable[[], object], logs_now: bool
    ) -> None:
        """Look at the loss of a batch, before its backward pass.

        A loss that is not finite stops the run at once if that needs neither waiting for a GPU nor
        for other processes, otherwise at the next step that is logged.

        Args:
            loss: the loss of this process's part of the batch.
            trainer: the trainer, inside a step.
            again: computes the outputs of the batch again, with the same random numbers.
            logs_now: whether metrics are logged for this batch.
        """
        step = trainer.global_step + 1
        alone, on_cpu = self.group.size == 1, loss.device.type == "cpu"
        # With several processes, capacity is counted over all of them, and weights in parts are
        # gathered from all of them, which this one cannot do.
        counts_together = self.net.architecture.capacity_factor is not None
        can_repeat = alone or not (counts_together or has_shards(self.net))
        cause = partial(origin, self.net, step, again if can_repeat else None)
        self.watch.see(loss, step, cause, at_once=on_cpu)
        if logs_now or (alone and on_cpu):
            self.stop_if(self.watch.finding(step, cause), trainer)

    def check(self, trainer: Trainer) -> None:
        """Stop if, after a step, a loss or a weight is known not to be finite."""
        step = trainer.global_step
        weights = spoilt(self.net, step)
        found = self.watch.finding(step, partial(too_late, step))
        # What was found at a loss is earlier and says more.
        self.stop_if(found or weights, trainer)

    def stop_if(self, found: Finding | None, trainer: Trainer) -> None:
        """Raise in all processes, with the first finding of any; all must call."""
        strategy = trainer.strategy
        if not strategy.reduce_boolean_decision(found is not None, all=False):
            return
        findings = [strategy.broadcast(found, src) for src in range(self.group.size)]
        step, cause = min(one for one in findings if one is not None)
        raise NotFiniteError(f"the loss is not finite at step {step}: {cause}; {WAYS_OUT}")
