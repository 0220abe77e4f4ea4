"""The classes an option accepts: their names, suggestions for a wrong name, and their help."""

import argparse
import inspect
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from jsonargparse import Namespace
from jsonargparse._util import import_object

from makemoe.cli.signatures import as_shown, in_columns
from makemoe.errors import UsageError

MOST_LISTED = 8

BY_POSITION = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD

SECTIONS = re.compile(r"^(?:Args|Attributes|Raises|Returns|Examples?):|^ *\.\. |^ *>>>", re.M)
"""Where the description in a docstring ends and its sections start."""


def class_help(parser: argparse.ArgumentParser, action: Any, name: str | None) -> str:
    """The help for a class that an option accepts.

    Args:
        parser: the parser of the option; a new one of the same type lists the arguments.
        action: jsonargparse's action of `--OPTION.help`.
        name: name of the class, with or without its module; None: the base class.
    """
    option = action.option_strings[0].removesuffix(".help")
    try:
        cls = action.resolve_help_type(name, option)
    except TypeError as error:
        near = near_classes(name or "", action) or "; give its module too"
        raise UsageError(f"{option}: unknown class {name}{near}") from error
    words = SECTIONS.split(inspect.getdoc(cls) or "", maxsplit=1)[0].strip()
    lines = [f"{cls.__module__}.{cls.__qualname__}", "", *([words, ""] if words else [])]
    if name is None:
        lines += ["classes:", *(f"  {name}" for name in class_names(action)), ""]
    if not inspect.isabstract(cls):
        lines += argument_lines(parser, option, cls, arguments_given(action._typehint))
    return "\n".join(lines).strip() + "\n"


def argument_lines(
    parser: argparse.ArgumentParser, option: str, cls: type, given: int
) -> list[str]:
    """The arguments of a class, one option per line.

    The first `given` are omitted, because the model sets them.
    """
    own: Any = type(parser)(add_help=False)
    key = option.removeprefix("--")
    skip = {given} if given else set()
    own.add_class_arguments(cls, key, skip=skip, fail_untyped=False)
    lines = []
    for action in own._actions:
        name = action.option_strings[0].removeprefix("--") if action.option_strings else key
        if name.startswith(f"{key}.") and not name.endswith(".help"):
            lines += in_columns(name, default_of(action), action.help or "")
    return ["arguments:", *lines] if lines else ["no arguments"]


def default_of(action: argparse.Action) -> str:
    """An option's default as help shows it; for a class, its name."""
    default = action.default
    if isinstance(default, dict) and "class_path" in default:
        default = default["class_path"].rpartition(".")[2]
    return "" if default in (argparse.SUPPRESS, []) else as_shown(default)


def arguments_given(typehint: Any) -> int:
    """How many arguments the model itself passes to a class of this type."""
    for part in (typehint, *get_args(typehint)):
        taken = get_args(part)[:1] if get_origin(part) is Callable else ()
        if taken and isinstance(taken[0], list):
            return len(taken[0])
    return 0


def words_of(typehint: Any) -> list[str]:
    """The words that an option of this type accepts beside a class."""
    parts = (typehint, *get_args(typehint))
    return [word for part in parts if get_origin(part) is Literal for word in get_args(part)]


def check_fits(typehint: Any, value: Any, option: str) -> None:
    """Raise UsageError for a class that cannot be called as the model calls classes of this type.

    Args:
        typehint: of the option.
        value: of the option, with the whole name of a class.
        option: its name.
    """
    name = value.get("class_path") if isinstance(value, Namespace) else None
    given = arguments_given(typehint)
    if not given or not isinstance(name, str):
        return
    cls = import_object(name)
    if inspect.isclass(cls) and not takes(cls, given):
        raise UsageError(
            f"{option}: {cls.__name__} does not take the {given} arguments that the model gives "
            f"it: --{option.removeprefix('--')}.help lists the classes that do"
        )


def takes(cls: type, count: int) -> bool:
    """Whether a class can be called with so many arguments by position."""
    kinds = [parameter.kind for parameter in inspect.signature(cls).parameters.values()]
    by_position = sum(kind in BY_POSITION for kind in kinds)
    return by_position >= count or inspect.Parameter.VAR_POSITIONAL in kinds


def near_classes(name: str, action: Any) -> str:
    """A suggestion for an unknown class name: the most similar one, or all if they are few."""
    known = {known.lower(): known for known in class_names(action)}
    if name in known.values():
        return ": several classes have this name, give its module too"
    short = name.rpartition(".")[2].lower()
    if near := get_close_matches(short, known, n=1, cutoff=0.6):
        return f": did you mean {known[near[0]]}?"
    return f" (known: {', '.join(known.values())})" if 0 < len(known) <= MOST_LISTED else ""


def class_names(action: Any) -> list[str]:
    """Names of the classes that an option accepts, from jsonargparse's action of its help."""
    given = arguments_given(action._typehint)
    known = [cls for base in action._help_types for cls in subclasses(base)]
    return sorted({cls.__name__ for cls in known if takes(cls, given)})


def subclasses(base: type) -> list[type]:
    """A class and its subclasses, without abstract and private ones."""
    direct: list[type] = base.__subclasses__()
    below = [cls for sub in direct for cls in subclasses(sub)]
    return below if inspect.isabstract(base) or base.__name__.startswith("_") else [base, *below]
