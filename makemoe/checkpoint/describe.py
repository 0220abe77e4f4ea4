"""Describes the parts of a model that was built in Python, so that a checkpoint can name them.

A checkpoint holds plain values and class paths with arguments, never objects or functions.
`makemoe.checkpoint.held` reads back what is written here.
"""

import inspect
from functools import partial
from types import NoneType
from typing import Any

from makemoe.checkpoint.held import OF_TORCH, is_at, shown, signature_of

PLAIN = (NoneType, bool, int, float, str)


class Undescribed(Exception):
    """Why a value cannot be described."""


def described(value: Any) -> Any:
    """The plain value or class path that stands for a value in a checkpoint.

    A class, a `partial` of a class with named arguments, and an object that keeps its arguments as
    attributes of the same name can be described.

    Raises:
        Undescribed: saying what else it is.
    """
    if isinstance(value, PLAIN):
        return plain(value)
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, type):
        return part(value, {})
    if isinstance(value, partial):
        return described_partial(value)
    if inspect.isroutine(value):
        raise Undescribed(f"is a function, {value.__qualname__}")
    return described_object(value)


def plain(value: Any) -> Any:
    """A plain value as one of Python's own types, since NumPy's numbers are subclasses of them."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return None


def described_partial(value: "partial[Any]") -> dict[str, Any]:
    """The class of a partial, and its arguments."""
    if not isinstance(value.func, type):
        raise Undescribed(f"is a partial of {shown(value.func)}, not of a class")
    if value.args:
        raise Undescribed("is a partial with arguments that have no names")
    return part(value.func, value.keywords)


def described_object(value: Any) -> dict[str, Any]:
    """The class of an object, and the arguments it was built with.

    They are taken from its attributes. Only if the class builds an equal object from them, they
    are the right ones.
    """
    cls = type(value)
    class_path(cls)  # first, because it is the simpler reason
    try:
        names = signature_of(cls)[0]
        given = {name: getattr(value, name) for name in names}
        same = bool(vars(cls(**given)) == vars(value))
    except Exception:  # a class of the user may raise anything
        same = False
    if not same:
        raise Undescribed(
            f"is a {cls.__name__}, which does not keep its arguments as attributes of the same name"
        )
    return part(cls, given)


def part(cls: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """A class and its arguments, as the command line writes them."""
    spec: dict[str, Any] = {"class_path": class_path(cls)}
    for name, argument in arguments.items():
        try:
            spec.setdefault("init_args", {})[name] = described(argument)
        except Undescribed as error:
            raise Undescribed(f"has an argument {name} that {error}") from error
    return spec


def class_path(cls: type) -> str:
    """The path under which a class can be imported in another process."""
    if (public := f"torch.optim.{cls.__name__}") in OF_TORCH and is_at(public, cls):
        return public
    path = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ in ("__main__", "builtins") or not is_at(path, cls):
        raise Undescribed(
            f"is {cls.__qualname__} of {cls.__module__}, which another program cannot import: "
            "define it at the top of a module"
        )
    return path
