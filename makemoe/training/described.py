"""What a checkpoint holds of the settings of a model that was built in Python."""

from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch.optim import Optimizer

from makemoe.checkpoint.describe import Undescribed, described
from makemoe.checkpoint.held import signature_of
from makemoe.errors import UsageError
from makemoe.model.transformer import MoETransformer
from makemoe.training.optim import build_optimizer
from makemoe.training.param_groups import ParamGroups, Weight

OF_THE_RUN = ("optimizer", "lr_scheduler")
"""Settings without which a model can be built; a run that is resumed in Python has its own."""

FROM_THE_COMMAND_LINE = "_instantiator"
"""Setting of a model that the command line built, from specifications."""


def describe(
    settings: MutableMapping[str, Any],
    make: OptimizerCallable,
    policy: ParamGroups,
    weights: Sequence[Weight],
) -> list[str]:
    """Replace objects and functions in a model's settings by what a checkpoint can hold of them.

    Args:
        settings: the settings, changed in place; those of the command line are left as they are.
        make: builds the optimizer.
        policy: makes the optimizer's groups.
        weights: the weights of the model.

    Returns:
        Which settings cannot be described, and why.
    """
    if FROM_THE_COMMAND_LINE in settings:
        return []
    given = {**settings, "optimizer": optimizer_class(make, policy, weights)}
    held, refused = specifications(complete(given))
    settings.clear()
    settings.update(held)
    return refused


def specifications(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings as plain values and class paths, and why others cannot be described.

    An optimizer or a schedule that cannot be described is left out.
    """
    held, refused = {}, []
    for name, value in settings.items():
        try:
            held[name] = described(value)
        except Undescribed as error:
            if name not in OF_THE_RUN:
                refused.append(f"{name} {error}")
    return held, refused


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model, with the defaults of those that were not given."""
    defaults = {
        name: parameter.default
        for name, parameter in signature_of(MoETransformer)[0].items()
        if parameter.default is not parameter.empty
    }
    return {
        **defaults,
        **settings,
        FROM_THE_COMMAND_LINE: "lightning.pytorch.cli.instantiate_module",
    }


def optimizer_class(
    make: OptimizerCallable, policy: ParamGroups, weights: Sequence[Weight]
) -> OptimizerCallable:
    """A class with arguments that builds the same optimizer as a function; else the function.

    A function is described by what it builds: `lambda params: AdamW(params, lr=0.1)` is AdamW with
    its options.
    """
    try:
        described(make)
    except Undescribed:
        built = build_optimizer(make, policy, weights)
        names = signature_of(type(built))[0]
        options = {name: value for name, value in built.defaults.items() if name in names}
        again = partial(type(built), **options)
        try:
            same = contents(build_optimizer(again, policy, weights)) == contents(built)
        except UsageError:
            same = False
        return again if same else make
    return make


def contents(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups of an optimizer, which can be compared."""
    return [
        {**group, "params": [id(parameter) for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]


def check_described(refused: Sequence[str]) -> None:
    """Raise UsageError if a checkpoint cannot hold all settings that the model needs."""
    if refused:
        raise UsageError(
            f"a checkpoint cannot hold this model, because its {'; its '.join(refused)}: use a "
            "class, or functools.partial of a class with named arguments, or train with "
            "Trainer(enable_checkpointing=False)"
        )
