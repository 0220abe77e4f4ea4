"""Finds the checkpoint that a command names, when its settings of the model need the checkpoint's.

`--ckpt_path last --model.lr_scheduler.total_steps 9000` sets an argument of a class that only the
checkpoint names. Such a command is first read without any settings of the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import yaml

from makemoe.cli.strict_yaml import load_yaml

GROUP = "model"
LEFT_OUT: ContextVar[set[str] | None] = ContextVar("left_out", default=None)
"""Collects the options of the model that are left out of config files; None: none are."""


@contextmanager
def leaving_out_model() -> Iterator[set[str]]:
    """Within this context, config files are read without settings of the model.

    Yields:
        The options that the files set to something of their own, such as another class.
    """
    names: set[str] = set()
    token = LEFT_OUT.set(names)
    try:
        yield names
    finally:
        LEFT_OUT.reset(token)


def as_read(text: str) -> str:
    """The text of a config file, without what is to be left out."""
    names = LEFT_OUT.get()
    if names is None:
        return text
    settings = load_yaml(text)
    names |= set_as_a_whole(settings.pop(GROUP, None))
    return yaml.safe_dump(settings)


def set_as_a_whole(settings: Any) -> set[str]:
    """The options in a mapping of settings, without those that only get arguments for a class."""
    if not isinstance(settings, dict):
        return set()
    return {
        f"{GROUP}.{name}"
        for name, value in settings.items()
        if not isinstance(value, dict) or "class_path" in value
    }


def without_model(arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """The arguments of a command without the model's, and the options of the model they name."""
    kept, names, left = [], set(), list(arguments)
    while left:
        option, has_value, _ = (argument := left.pop(0)).partition("=")
        if option != f"--{GROUP}" and not option.startswith(f"--{GROUP}."):
            kept.append(argument)
            continue
        names.add(option.removeprefix("--").removesuffix("+"))
        if not has_value and left:
            left.pop(0)
    return kept, names
