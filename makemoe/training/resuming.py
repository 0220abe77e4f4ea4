"""Resuming: checks the state in a checkpoint, then applies settings that the user changed.

A checkpoint of weights alone has no state: a new run begins with its weights.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.plugins.precision import DoublePrecision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from makemoe.checkpoint.alike import Unlike, check_alike
from makemoe.checkpoint.format import Checkpoint
from makemoe.checkpoint.held import is_known
from makemoe.errors import CheckpointError, UsageError
from makemoe.shards import has_shards
from makemoe.training.misfit import class_and_arguments
from makemoe.training.optim import blaming
from makemoe.training.param_groups import Weight

NEEDED = ("loops", "callbacks", "optimizer_states", "lr_schedulers")
GROUPS = "optimizer_groups"
"""Key under which a checkpoint stores the names of the optimizer's parameters, by group."""

OF_SCHEDULES = {
    *("initial_lr", "max_lr", "min_lr"),
    *("max_momentum", "base_momentum"),
}
"""Keys that torch's schedules add to an optimizer's groups."""

LATER = {"ns_dtype": None}
"""Options that an optimizer got after runs had been saved with it, and what stands for that."""

NOT_FOR_ONE = "params", "fused", "parts"
"""Options of a group that do not apply to a single small parameter, and do not change its state."""

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


def is_weights_alone(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has nothing of a run, as one that was imported: it begins a new run."""
    return not any(key in checkpoint for key in NEEDED)


def begin_with(checkpoint: Checkpoint, model: LightningModule) -> None:
    """Give the weights of a checkpoint to a model that no trainer has yet.

    Raises:
        CheckpointError: if they are those of another model.
    """
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])


def widen(model: LightningModule) -> None:
    """Make a model that trains in float64 one of float64 before it gets its weights.

    Lightning does so later, when they were rounded to float32. Weights in parts are wide already.
    """
    is_double = isinstance(model.trainer.precision_plugin, DoublePrecision)
    if is_double and not has_shards(model):
        model.double()


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

    The state of a user's own optimizer is not checked, as it may contain anything.

    Raises:
        CheckpointError: naming what is wrong.
    """
    schedules = [] if scheduler is None else [scheduler.state_dict()]
    refuse_unlike(checkpoint["lr_schedulers"], schedules, "lr_schedulers")
    if not is_known(type(optimizer)):
        return
    held, own = optimizer_state(checkpoint), optimizer.state_dict()
    if held.keys() != own.keys():
        raise damaged("optimizer_states is not the state of one optimizer")
    groups = [
        {key: value for key, value in group.items() if key != "initial_lr"}
        if isinstance(group, dict)
        else group
        for group in as_list(held["param_groups"])
    ]
    for group in own["param_groups"]:
        group.pop("initial_lr", None)
    refuse_unlike(groups, own["param_groups"], "param_groups")
    for group, own_group in zip(groups, own["param_groups"], strict=True):
        for name, value in own_group.items():
            # Words, unlike learning rates, are changed by no schedule.
            if isinstance(value, str) and group[name] != value:
                raise damaged(f"the {name} of its param_groups is not {value}")
    if [group["params"] for group in groups] != [g["params"] for g in own["param_groups"]]:
        raise damaged("param_groups has other parameters than the model")
    check_moments(held["state"], optimizer)


def check_moments(state: Any, optimizer: Optimizer) -> None:
    """Refuse a state per parameter that a step of this optimizer would not produce."""
    parameters, kept = list_parameters(optimizer), kept_by_each(optimizer)
    if not isinstance(state, dict) or not state.keys() <= set(range(len(parameters))):
        raise damaged("its optimizer has other parameters than the model")
    for number, held in state.items():
        parameter, like = parameters[number], kept[number]
        if not isinstance(held, dict) or held.keys() != like.keys():
            raise damaged(f"its optimizer state for parameter {number} has unexpected entries")
        for name, value in held.items():
            wanted = like[name]
            if isinstance(value, Tensor) != isinstance(wanted, Tensor):
                raise damaged(f"its {name} of parameter {number} is a {type(value).__name__}")
            if isinstance(value, Tensor) and not is_shaped(value, wanted, parameter):
                raise damaged(
                    f"its {name} of parameter {number} has shape {tuple(value.shape)}, the "
                    f"parameter {tuple(parameter.shape)}"
                )
            if not isinstance(value, Tensor | int | float):
                raise damaged(f"its {name} of parameter {number} is a {type(value).__name__}")


def list_parameters(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer, as its state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def kept_by_each(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What an optimizer stores for each of its parameters, found for small ones like them."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    kept = []
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            kind = parameter.ndim, number
            if kind not in found:
                found[kind] = kept_per_parameter(optimizer, parameter.ndim, group)
            kept.append(found[kind])
    return kept


def kept_per_parameter(optimizer: Optimizer, ndim: int, group: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter in a group, found by a step on one of 2 x 3 x 4 ... numbers."""
    one = nn.Parameter(torch.zeros(tuple(range(2, 2 + ndim))))
    one.grad = torch.zeros_like(one)
    options = {key: value for key, value in group.items() if key not in NOT_FOR_ONE}
    make: Callable[..., Optimizer] = type(optimizer)
    like = make([options | {"params": [one]}])
    like.param_groups[0].update(foreach=False, capturable=False)
    like.step()
    return dict(like.state[one])


def is_shaped(value: Tensor, like: Tensor, parameter: Tensor) -> bool:
    """Whether a tensor is real and has, for a parameter, the shape that `like` has for a small one.

    A small one has no sides of 1, so such a side of `like` does not follow the parameter.
    """
    sides = parameter.shape[parameter.ndim - like.ndim :]
    wanted = [1 if side == 1 else own for side, own in zip(like.shape, sides, strict=True)]
    return value.is_floating_point() and list(value.shape) == wanted


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


def names_by_group(optimizer: Optimizer, weights: Sequence[Weight]) -> list[list[str]]:
    """The names of an optimizer's parameters, group by group: what its state's numbers mean."""
    names = {id(weight.parameter): weight.name for weight in weights}
    return [
        [names.get(id(parameter), "") for parameter in group["params"]]
        for group in optimizer.param_groups
    ]


def complete(checkpoint: Checkpoint, optimizer: Optimizer) -> None:
    """Add the options to a checkpoint's groups that its optimizer got only later."""
    groups = optimizer_state(checkpoint).get("param_groups")
    for held, own in zip(as_list(groups), optimizer.param_groups, strict=False):
        for name in LATER.keys() & own.keys():
            if isinstance(held, dict):
                held.setdefault(name, LATER[name])


def regroup(checkpoint: Checkpoint, optimizer: Optimizer, weights: Sequence[Weight]) -> bool:
    """Number a checkpoint's optimizer state as this optimizer does, if its groups are different.

    Options that the optimizer did not have yet when it was saved are added.

    Returns:
        Whether they are; the groups in the checkpoint must then be overruled.

    Raises:
        CheckpointError: if the checkpoint names other parameters than the model has.
    """
    complete(checkpoint, optimizer)
    own = names_by_group(optimizer, weights)
    # Before checkpoints held the names, there was one group in the order of the model.
    held = checkpoint.get(GROUPS, [[weight.name for weight in weights]])
    if held == own:
        return False
    names = [name for group in held for name in as_list(group)]
    numbers = {name: number for number, name in enumerate(chain.from_iterable(own))}
    if not all(isinstance(name, str) for name in names) or sorted(names) != sorted(numbers):
        raise damaged(f"its {GROUPS} are not the parameters of the model")
    state = optimizer_state(checkpoint)
    moments = state.get("state")
    if not isinstance(moments, dict) or not moments.keys() <= set(range(len(names))):
        raise damaged("its optimizer has other parameters than the model")
    state["state"] = {numbers[names[number]]: kept for number, kept in moments.items()}
    return True


def overrule(
    checkpoint: Checkpoint,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
) -> None:
    """Replace the settings in a checkpoint's optimizer and schedule state by new ones.

    Moments and step counts are kept; a schedule is advanced to the step of the run. A schedule
    that goes by the validation loss begins anew. Raises UsageError for a different kind of
    optimizer, and for a schedule that cannot be advanced.
    """
    if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):
        advance(scheduler, checkpoint.get("global_step", 0))
    checkpoint["lr_schedulers"] = [] if scheduler is None else [scheduler.state_dict()]
    fresh = optimizer.state_dict()["param_groups"]
    state = optimizer_state(checkpoint)
    held = state.get("param_groups")
    if not isinstance(held, list) or not all(isinstance(group, dict) for group in held):
        raise damaged("it has no optimizer state")
    kinds = [{frozenset(group.keys() - OF_SCHEDULES) for group in side} for side in (held, fresh)]
    path, _ = class_and_arguments(checkpoint.get("hyper_parameters", {}), "optimizer")
    # AdamW and Adam have the same options, and decay weights in different ways.
    is_other = isinstance(path, str) and path.rpartition(".")[2] != type(optimizer).__name__
    if kinds[0] != kinds[1] or is_other:
        raise UsageError(
            "--model.optimizer: a resumed run must use the same kind of optimizer; "
            "start a new run to use another"
        )
    check_methods(state.get("state"), optimizer)
    state["param_groups"] = fresh


def check_methods(state: Any, optimizer: Optimizer) -> None:
    """Raise UsageError if new settings need a state of a parameter that the run does not have."""
    if not is_known(type(optimizer)) or not isinstance(state, dict):
        return
    for number, like in enumerate(kept_by_each(optimizer)):
        held = state.get(number, like)
        if isinstance(held, dict) and held.keys() != like.keys():
            raise UsageError(
                "--model.optimizer and --model.param_groups: they would train a weight by another "
                "method than the run has so far: keep its method, or start a new run"
            )


def advance(scheduler: LRScheduler, step: int) -> None:
    """Advance a new schedule, and the learning rates of its optimizer, to a step of the run."""
    with warnings.catch_warnings(), blaming(f"--model.lr_scheduler at step {step}"):
        warnings.simplefilter("ignore")  # that the optimizer has not stepped
        for _ in range(min(step, LATEST)):
            scheduler.step()


def optimizer_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state of the only optimizer in a checkpoint."""
    states = as_list(checkpoint["optimizer_states"])
    if len(states) != 1 or not isinstance(states[0], dict):
        raise damaged("optimizer_states is not the state of one optimizer")
    state: dict[str, Any] = states[0]
    return state
