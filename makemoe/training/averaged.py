"""The averaged weights of a run: kept beside the trained ones, and used where it evaluates.

In a checkpoint the average is the model: it stands in `state_dict`, where everything that predicts
or evaluates looks. The trained weights, which only a resumed run needs, are under `averaging`.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from makemoe.checkpoint.format import Checkpoint, is_all_finite
from makemoe.errors import UsageError
from makemoe.model.router import Router
from makemoe.model.transformer import MoETransformer
from makemoe.shards import cut, here
from makemoe.training.averaging import KEY, Averaging
from makemoe.training.misfit import class_and_arguments
from makemoe.training.resuming import damaged, refuse_unlike

PREFIX = "net."
"""Prefix of the model's names in the `LanguageModel` and in checkpoints."""

Weights = dict[str, Tensor]


class Averaged:
    """Averages the weights of a model, and exchanges them with the average.

    Parameters are averaged, and buffers that training changes, such as a router's bias; at least in
    float32. All processes average the same weights, so they need not communicate.

    Args:
        averaging: the rule; None: there is no average, and every method does nothing.
        net: the model that is trained.

    Attributes:
        average: the average, by name in the checkpoint; None: it has not begun.
        steps: number of steps whose weights are in it.
        trained: the trained weights while the model has the average; otherwise None.
    """

    def __init__(self, averaging: Averaging | None, net: MoETransformer) -> None:
        self.averaging, self.net = averaging, net
        self.average: Weights | None = None
        self.trained: Weights | None = None
        self.steps = 0
        self.weights: Weights = {}
        """Those of the model during a fit; collecting them takes a millisecond."""

    def callbacks(self) -> list[Callback]:
        """The callback that evaluates with the average."""
        return [] if self.averaging is None else [EvaluateAverage(self)]

    def check(self, max_steps: int) -> None:
        """Raise UsageError if a run ends before anything is averaged; -1: it does not end."""
        start = 0 if self.averaging is None else self.averaging.start_step
        if 0 < max_steps <= start:
            raise UsageError(
                f"--model.averaging: start_step {start}, but the run ends at step {max_steps}, "
                "before anything is averaged: lower it, or raise --trainer.max_steps"
            )

    def follow(self) -> None:
        """Move the average to where the weights of the model are now."""
        self.weights = changing(self.net)
        if self.average is not None:
            self.average = copied(self.average, self.weights, torch.float32)

    @torch.no_grad()
    def end_step(self, step: int, stepped: bool) -> None:
        """Add the weights after a step to the average.

        Args:
            step: the step, counted from 1.
            stepped: whether the weights changed. A gradient scaler skips steps; those do not count.
        """
        if self.averaging is None or not stepped or step <= self.averaging.start_step:
            return
        weights = self.weights or changing(self.net)
        if self.average is None:
            self.average, self.steps = copied(weights, weights, torch.float32), 1
            return
        # Each tied weight once.
        pairs = {id(mean): (mean, weights[name]) for name, mean in self.average.items()}.values()
        means = [mean for mean, _ in pairs]
        newest = [here(weight.detach()).to(mean.dtype) for mean, weight in pairs]
        torch._foreach_lerp_(list(map(here, means)), newest, self.averaging.share(self.steps))
        self.steps += 1

    def put_in(self) -> None:
        """Give the average to the model, and keep the trained weights."""
        if self.average is None or self.trained is not None:
            return
        weights = changing(self.net)
        # Lightning evaluates in inference mode, whose tensors cannot be trained.
        with torch.inference_mode(False), torch.no_grad():
            self.trained = copied(weights, weights)
            for name, weight in weights.items():
                weight.copy_(self.average[name])

    def take_out(self) -> None:
        """Give the trained weights back to the model."""
        if self.trained is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            for name, weight in changing(self.net).items():
                weight.copy_(self.trained[name])
        self.trained = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Make the average the model of a checkpoint, and add the trained weights."""
        if self.average is None:
            return
        state = checkpoint["state_dict"]
        trained = self.trained or {name: state[name] for name in self.average}
        checkpoint["state_dict"] = state | self.average
        checkpoint[KEY] = {"steps": self.steps, "trained": trained}

    def resume(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """Continue the average of a checkpoint, and make the trained weights its model again.

        Args:
            checkpoint: a checkpoint whose model fits; changed in place.
            asked: the settings of the model, which may ask for another average than it holds.

        Raises:
            CheckpointError: for an invalid average.
        """
        self.average, self.trained, self.steps = None, None, 0
        weights, average, steps = changing(self.net), None, 0
        if KEY in checkpoint:
            steps, trained = checked(checkpoint[KEY], weights)
            average = checkpoint["state_dict"]
            checkpoint["state_dict"] = average | trained
        held = checkpoint.get("hyper_parameters", {})
        is_same = class_and_arguments(held, KEY)[0] == class_and_arguments(asked, KEY)[0]
        step = checkpoint.get("global_step", 0)
        start = None if self.averaging is None else self.averaging.start_step
        if average is not None and is_same and start is not None and step > start:
            self.average, self.steps = copied(average, weights, torch.float32), steps
        elif average is not None:
            then = "" if start is None else f", and begins anew after step {max(step, start)}"
            tell(f"the checkpoint's average of the weights is not continued{then}")
        elif start is not None and step > start:
            tell(f"the checkpoint has no average of the weights: it begins after step {step}")


class EvaluateAverage(Callback):
    """Puts the average into the model for each validation, and at the end of the run.

    It must run after the callbacks that use the model at the end of a validation. Those that a
    LightningModule adds do, and checkpoints may be saved at any time.

    Args:
        averaged: the average.
    """

    def __init__(self, averaged: Averaged) -> None:
        self.averaged = averaged

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:
            self.averaged.check(trainer.max_steps)
        self.averaged.take_out()  # of an earlier fit
        self.averaged.follow()

    # Before the hook of the module, which calibrates the routers' biases for the model's weights.
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.averaged.put_in()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.averaged.take_out()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.averaged.follow()
        self.averaged.put_in()


def changing(net: MoETransformer) -> Weights:
    """The parameters and the floating-point buffers that training changes, by name.

    A weight with several names has all of them.
    """
    derived = {
        f"{path}.{name}"
        for path, part in net.named_modules()
        if isinstance(part, Router)
        for name in part.derived
    }
    return {
        PREFIX + name: tensor
        for name, tensor in net.state_dict(keep_vars=True).items()
        if tensor.is_floating_point() and name not in derived
    }


def copied(source: Weights, weights: Weights, least: torch.dtype | None = None) -> Weights:
    """Copies of the tensors in `source` that have the names of `weights`, on their devices.

    What is one tensor in `weights` is one in the copy. `least`: a dtype with fewer bits becomes
    this one.
    """
    copies: dict[int, Tensor] = {}
    for name, weight in weights.items():
        if id(weight) not in copies:
            held = cut(source[name].detach(), weight)
            dtype = held.dtype if least is None else torch.promote_types(held.dtype, least)
            copies[id(weight)] = held.to(weight.device, dtype, copy=True)
    return {name: copies[id(weight)] for name, weight in weights.items()}


def checked(held: Mapping[str, Any], weights: Weights) -> tuple[int, Weights]:
    """The number of averaged steps, and the trained weights, of a checkpoint's average."""
    refuse_unlike({**held, "trained": None}, {"steps": 0, "trained": None}, KEY)
    steps, trained = held["steps"], held.get("trained")
    if steps == 0 or not isinstance(trained, dict) or trained.keys() != weights.keys():
        raise damaged(f"its {KEY} is not the state of an average of the model's weights")
    for name, weight in weights.items():
        value, where = trained[name], f"its {KEY}.trained.{name}"
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise damaged(f"{where} is not a tensor of floating-point numbers")
        if value.shape != weight.shape:
            raise damaged(f"{where} has shape {tuple(value.shape)}, not {tuple(weight.shape)}")
        if not is_all_finite(value):
            raise damaged(f"{where} is not finite")
    return steps, trained


@rank_zero_only
def tell(words: str) -> None:
    """Print one line on standard error, from the first process."""
    print(f"makemoe: {words}", file=sys.stderr)
