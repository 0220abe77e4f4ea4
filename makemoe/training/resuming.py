"""Resuming: checks the state in a checkpoint, then applies settings that the user changed."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from makemoe.checkpoint.alike import Unlike, check_alike
from makemoe.checkpoint.format import Checkpoint
from makemoe.checkpoint.held import OF_TORCH
from makemoe.errors import CheckpointError, UsageError

NEEDED = ("loops", "callbacks", "optimizer_states", "lr_schedulers")
LATEST = 10_000_000
"""No schedule is advanced beyond this step, because none changes after it."""


def check_resumable(checkpoint: Checkpoint, trainer: Trainer) -> None:
    """Refuse a checkpoint whose loops or callbacks are in a state that this trainer cannot have.

    Raises:
        CheckpointError: naming what is wrong.
    """
    missing = [key for key in NEEDED if key not in checkpoint]
    if missing:
        raise CheckpointError(
            f"the checkpoint cannot be resumed: it has no {missing[0]}; sample from it, or start "
            "a new run"
        )
    own_loops = trainer._checkpoint_connector._get_loops_state_dict()
    checks: list[tuple[Any, Any, str]] = [(checkpoint["loops"], own_loops, "loops")]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer | EarlyStopping) and callback.state_key in (
            held := checkpoint["callbacks"]
        ):
            name = type(callback).__name__
            checks.append((held[callback.state_key], fresh_state(callback), name))
    precision = trainer.precision_plugin
    if (name := type(precision).__qualname__) in checkpoint:
        checks.append((checkpoint[name], precision.state_dict(), name))
    for state, own, name in checks:
        refuse_unlike(state, own, name)


def fresh_state(callback: Timer | EarlyStopping) -> dict[str, Any]:
    """A callback's state before a run; a Timer's seconds are whole only until it has started."""
    state = callback.state_dict()
    if isinstance(callback, Timer):
        state["time_elapsed"] = dict.fromkeys(state["time_elapsed"], 0.0)
    return state


def check_optimizer(
    checkpoint: Checkpoint, optimizer: Optimizer, scheduler: LRScheduler | None
) -> None:
    """Refuse a state that does not fit the optimizer, its parameters or the schedule.

    The state of an optimizer that is not torch's own is not checked, as it may contain anything.

    Raises:
        CheckpointError: naming what is wrong.
    """
    schedules = [] if scheduler is None else [scheduler.state_dict()]
    refuse_unlike(checkpoint["lr_schedulers"], schedules, "lr_schedulers")
    if f"torch.optim.{type(optimizer).__name__}" not in OF_TORCH:
        return
    held, own = checkpoint["optimizer_states"], optimizer.state_dict()
    if len(held) != 1 or not isinstance(held[0], dict) or held[0].keys() != own.keys():
        raise damaged("optimizer_states is not the state of one optimizer")
    groups = [
        {key: value for key, value in group.items() if key != "initial_lr"}
        if isinstance(group, dict)
        else group
        for group in as_list(held[0]["param_groups"])
    ]
    for group in own["param_groups"]:
        group.pop("initial_lr", None)
    refuse_unlike(groups, own["param_groups"], "param_groups")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if [group["params"] for group in groups] != [g["params"] for g in own["param_groups"]]:
        raise damaged("param_groups has other parameters than the model")
    check_moments(held[0]["state"], parameters, optimizer)


def check_moments(state: Any, parameters: list[Tensor], optimizer: Optimizer) -> None:
    """Refuse a state per parameter that a step of this optimizer would not produce."""
    if not isinstance(state, dict) or not state.keys() <= set(range(len(parameters))):
        raise damaged("its optimizer has other parameters than the model")
    kept = {ndim: kept_per_parameter(optimizer, ndim) for ndim in {p.ndim for p in parameters}}
    for number, held in state.items():
        parameter = parameters[number]
        if not isinstance(held, dict) or held.keys() != kept[parameter.ndim].keys():
            raise damaged(f"its optimizer state for parameter {number} has unexpected entries")
        for name, value in held.items():
            if isinstance(value, Tensor) != isinstance(kept[parameter.ndim][name], Tensor):
                raise damaged(f"its {name} of parameter {number} is a {type(value).__name__}")
            if isinstance(value, Tensor) and not is_broadcastable(value, parameter):
                raise damaged(
                    f"its {name} of parameter {number} has shape {tuple(value.shape)}, the "
                    f"parameter {tuple(parameter.shape)}"
                )
            if not isinstance(value, Tensor | int | float):
                raise damaged(f"its {name} of parameter {number} is a {type(value).__name__}")


def kept_per_parameter(optimizer: Optimizer, ndim: int) -> dict[str, Any]:
    """The optimizer's state per parameter, found by a step on a single number."""
    one = nn.Parameter(torch.zeros((1,) * ndim))
    one.grad = torch.zeros_like(one)
    group = {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "fused")}
    make: Callable[..., Optimizer] = type(optimizer)
    like = make([one])
    like.param_groups[0].update(group, foreach=False, capturable=False)
    like.step()
    return dict(like.state[one])


def is_broadcastable(value: Tensor, parameter: Tensor) -> bool:
    """Whether a tensor is real and can be broadcast to the shape of a parameter."""
    if not value.is_floating_point() or value.ndim > parameter.ndim:
        return False
    own = parameter.shape[parameter.ndim - value.ndim :]
    return all(mine in (1, size) for mine, size in zip(value.shape, own, strict=True))


def refuse_unlike(state: Any, own: Any, name: str) -> None:
    """Raise CheckpointError for a state whose structure differs from that of a new one."""
    try:
        check_alike(state, own, name)
    except Unlike as error:
        raise damaged(f"its {error}") from error


def damaged(what: str) -> CheckpointError:
    """The error for a checkpoint with an invalid state."""
    return CheckpointError(f"the checkpoint is damaged or forged: {what}")


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, otherwise a list with the value as its only item."""
    return list(value) if isinstance(value, list | tuple) else [value]


def overrule(
    checkpoint: Checkpoint,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
) -> None:
    """Replace the settings in a checkpoint's optimizer and schedule state by new ones.

    Moments and step counts are kept; a schedule is advanced to the step of the old one. Raises
    UsageError for a different kind of optimizer.
    """
    old_schedules = checkpoint["lr_schedulers"]
    if scheduler is not None and old_schedules:
        reached = as_list(old_schedules)[0]
        steps = reached.get("last_epoch") if isinstance(reached, dict) else None
        if type(steps) is not int or not steps >= 0:
            raise damaged("its schedule has no valid step")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer has not stepped
            for _ in range(min(steps, LATEST)):
                scheduler.step()
    checkpoint["lr_schedulers"] = [] if scheduler is None else [scheduler.state_dict()]
    fresh = optimizer.state_dict()["param_groups"]
    state = as_list(checkpoint["optimizer_states"])[0]
    groups = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise damaged("it has no optimizer state")
    for group in groups:
        group.pop("initial_lr", None)  # set by a schedule; the new one sets it again
    kinds = [[group.keys() - {"initial_lr"} for group in side] for side in (groups, fresh)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            "--model.optimizer: a resumed run must use the same kind of optimizer; "
            "start a new run to use another"
        )
    for group, new in zip(groups, fresh, strict=True):
        group.update({key: value for key, value in new.items() if key != "params"})
