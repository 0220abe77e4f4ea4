"""Which average of the weights a run keeps. A rule is chosen in `model.averaging`.

A new rule is a subclass of `Averaging` in its own file, named in YAML by its class path:

    model:
      averaging: {class_path: makemoe.training.averaging.ExponentialAverage}

`makemoe.training.averaged` keeps the average. `docs/averaging.md` says where it is used.
"""

from abc import ABC, abstractmethod

from makemoe.errors import UsageError

KEY = "averaging"
"""Key under which a checkpoint stores the trained weights, and the number of averaged steps."""


class Averaging(ABC):
    """Base class of rules that average the weights after each optimizer step.

    Args:
        start_step: the average begins with the weights after the step that follows this one.

    Raises:
        UsageError: if start_step is negative.
    """

    def __init__(self, start_step: int = 0) -> None:
        if start_step < 0:
            raise UsageError(
                f"--model.averaging: {type(self).__name__} start_step {start_step} must be 0 or "
                "more: it is a number of optimizer steps"
            )
        self.start_step = start_step

    @abstractmethod
    def share(self, averaged: int) -> float:
        """The share of the newest weights in the new average, above 0 and at most 1.

        Args:
            averaged: number of steps whose weights are already in the average, at least 1.
        """


class ExponentialAverage(Averaging):
    """Exponential moving average: average = d * average + (1 - d) * weights, after each step.

    d is `decay`, but at the beginning (1 + t) / (10 + t) if that is less, where t is the number of
    steps already averaged. So the first weights, which are the worst, are soon forgotten.

    Args:
        decay: d, above 0 and below 1: the average covers about the last 1 / (1 - decay) steps.
        start_step: the average begins with the weights after the step that follows this one.

    Raises:
        UsageError: if decay is not between 0 and 1, or start_step is negative.
    """

    def __init__(self, decay: float = 0.999, start_step: int = 0) -> None:
        super().__init__(start_step)
        if not 0 < decay < 1:
            raise UsageError(
                f"--model.averaging: ExponentialAverage decay {decay} must be above 0 and below 1: "
                "use 0.999, for example"
            )
        self.decay = decay

    def share(self, averaged: int) -> float:
        return max(1 - self.decay, 9 / (10 + averaged))


class EqualAverage(Averaging):
    """The mean of the weights after each step that follows `start_step`, with the same weight.

    Args:
        start_step: the average begins with the weights after the step that follows this one; for
            example the step at which the learning rate has nearly stopped falling.
    """

    def __init__(self, start_step: int) -> None:
        super().__init__(start_step)

    def share(self, averaged: int) -> float:
        return 1 / (1 + averaged)
