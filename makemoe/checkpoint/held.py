"""What a checkpoint may contain: plain values, and classes with plain arguments.

A checkpoint is untrusted input. Every setting in it is checked against the annotation of the
argument it is for. No setting reaches a model or the command line without this check:

- numbers, booleans and None are accepted where the annotation allows them;
- a string is accepted where the annotation lists it (`Literal`) or is `str`; in the second case it
  becomes a `FreeText`, which must never be parsed or imported;
- where the annotation is a class, or a callable that returns one, a `Part` is accepted: a class
  path with plain arguments. The class must be a subclass of the annotated one, and be defined by
  makemoe, listed below, or defined in a module that the user trusts by name;
- nothing else is accepted: no functions, no open-ended mappings, no objects.
"""

import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union

from makemoe.errors import CheckpointError, setting

OPTIMIZERS = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD"),
    *("Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)
SCHEDULES = (
    *("ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR"),
    *("ExponentialLR", "LinearLR", "MultiStepLR", "OneCycleLR", "PolynomialLR"),
    *("ReduceLROnPlateau", "StepLR"),
)
OF_TORCH = {f"torch.optim.{name}" for name in OPTIMIZERS} | {
    f"torch.optim.lr_scheduler.{name}" for name in SCHEDULES
}
"""Classes of torch a checkpoint may name: optimizers and schedules that take no functions."""

OURS = "makemoe"
CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
LONGEST_PATH = 200
LARGEST = 1 << 62
"""Limit for integers; no size, count or seed is larger."""

MOST_ITEMS = 10_000
"""Limit for the length of a list."""


class FreeText(str):
    """A string from a checkpoint that is only data, such as the path of a text.

    A tokenizer's vocabulary may have a format of its own, which the tokenizer checks.
    """


class Part(NamedTuple):
    """A class that a checkpoint names, imported and checked, and its arguments.

    Attributes:
        path: the class path in the checkpoint.
        cls: the class.
        init_args: checked arguments, which may be parts themselves.
        is_factory: whether it is for an argument that takes a factory, not an object.
    """

    path: str
    cls: type
    init_args: dict[str, Any]
    is_factory: bool

    def factory(self) -> Callable[..., Any]:
        """Return the class with these arguments bound."""
        return partial(self.cls, **{name: made(value) for name, value in self.init_args.items()})


def made(value: Any) -> Any:
    """A checked value as an argument takes it: for a part, its factory or an object."""
    if isinstance(value, Part):
        return value.factory() if value.is_factory else value.factory()()
    return [made(item) for item in value] if isinstance(value, list) else value


class Misfit(Exception):
    """Why a value does not fit its annotation."""


class Untrusted(Misfit):
    """A class that is refused only because its module is not trusted."""


class Reader:
    """Checks settings against signatures.

    Args:
        path: the checkpoint, for messages.
        trusted: modules, besides makemoe, whose classes the checkpoint may name.
    """

    def __init__(self, path: str, trusted: Sequence[str] = ()) -> None:
        self.path, self.trusted = path, tuple(trusted)

    def value(self, value: Any, annotation: Any, name: str) -> Any:
        """Check a setting and return the value to use.

        Args:
            value: the value in the checkpoint.
            annotation: annotation of the argument it is for.
            name: name of the setting, for messages.

        Raises:
            CheckpointError: for a value that does not fit the annotation.
        """
        try:
            return self._fit(value, annotation)
        except Untrusted as error:
            raise CheckpointError(f"{self.path}: {name}: {error}") from error
        except Misfit as error:
            raise CheckpointError(
                f"{self.path} is damaged or forged: its {name} {error}"
            ) from error

    def _fit(self, value: Any, annotation: Any) -> Any:
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if annotation in PLAIN:
            return PLAIN[annotation](value)
        if origin in (Union, UnionType):
            return self._fit_one_of(value, arguments)
        if origin is Literal:
            if any(type(value) is type(word) and value == word for word in arguments):
                return value
            raise Misfit(f"is {shown(value)}, not one of {', '.join(map(repr, arguments))}")
        if origin in (list, tuple, Sequence, Iterable):
            return self._fit_items(value, origin, arguments)
        if origin is Callable:
            *bound, returned = arguments
            given = len(bound[0]) if bound and isinstance(bound[0], list) else 0
            return self._fit_part(value, classes_of(returned), given)
        if isinstance(annotation, type):
            return self._fit_part(value, (annotation,), None)
        raise Unsettable(value)

    def _fit_one_of(self, value: Any, annotations: Sequence[Any]) -> Any:
        failures: list[Misfit] = []
        for annotation in annotations:
            try:
                return self._fit(value, annotation)
            except Untrusted:
                raise
            except Misfit as failure:
                failures.append(failure)
        # An error about a class helps more than "is not None".
        raise next((f for f in failures if type(f) is Misfit), failures[0])

    def _fit_items(self, value: Any, origin: Any, arguments: Sequence[Any]) -> Any:
        if not isinstance(value, list | tuple) or len(value) > MOST_ITEMS:
            raise WrongKind(value, "a list")
        if origin is tuple and arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                raise WrongKind(value, f"a list of {len(arguments)}")
            kinds: Sequence[Any] = arguments
        else:
            kinds = [arguments[0]] * len(value)
        return [self._fit(item, kind) for item, kind in zip(value, kinds, strict=True)]

    def _fit_part(self, value: Any, bases: tuple[type, ...], given: int | None) -> Part:
        """Check a class path with arguments.

        Args:
            value: the class path, alone or with arguments.
            bases: the class must be a subclass of one of these.
            given: how many first arguments the caller of a factory provides; None: no factory.
        """
        bases = tuple(base for base in bases if self._is_base(base.__module__))
        if not bases:
            raise Unsettable(value)
        if isinstance(value, str):
            value = {"class_path": value}
        if (
            not isinstance(value, dict)
            or not isinstance(value.get("class_path"), str)
            or not value.keys() <= {"class_path", "init_args"}
        ):
            raise Misfit(f"is {shown(value)}, which does not name a class")
        cls = self._class(value["class_path"], bases)
        held = value.get("init_args")
        arguments = self._arguments(cls, {} if held is None else held, given or 0)
        return Part(value["class_path"], cls, arguments, given is not None)

    def _class(self, path: str, bases: tuple[type, ...]) -> type:
        if len(path) > LONGEST_PATH or not CLASS_PATH.fullmatch(path):
            raise Misfit(f"is {shown(path)}, which does not name a class")
        module_name, _, name = path.rpartition(".")
        if module_name.partition(".")[0] == "torch" and path not in OF_TORCH:
            raise Misfit(f"is {path}, which a checkpoint may not name: set it in a config")
        if path not in OF_TORCH and not self._is_trusted(module_name):
            raise Untrusted(
                f"the checkpoint uses the class {path}: if you trust that code, "
                f"add {setting('trust', module_name)}"
            )
        try:
            cls = getattr(importlib.import_module(module_name), name)
        except AttributeError as error:
            raise Misfit(f"is {path}, which does not exist") from error
        except Exception as error:  # third-party code may raise anything
            reason = " ".join(str(error).split())
            raise Misfit(f"is {path}, which cannot be imported: {reason}") from error
        wanted = " or ".join(base.__name__ for base in bases)
        if not isinstance(cls, type) or not issubclass(cls, bases) or inspect.isabstract(cls):
            raise Misfit(f"is {path}, which is not a {wanted}")
        # Trust in a module does not extend to what it imports.
        if path not in OF_TORCH and not self._is_trusted(cls.__module__):
            raise Untrusted(
                f"the checkpoint uses the class {path}, defined in {cls.__module__}: if you "
                f"trust that code, add {setting('trust', cls.__module__)}"
            )
        return cls

    def _is_trusted(self, module: str) -> bool:
        return any(f"{module}.".startswith(f"{name}.") for name in (OURS, *self.trusted))

    def _is_base(self, module: str) -> bool:
        return self._is_trusted(module) or module.startswith("torch.optim")

    def _arguments(self, cls: type, held: Any, given: int) -> dict[str, Any]:
        if not isinstance(held, dict):
            raise Misfit(f"has {shown(held)} for the arguments of {cls.__name__}")
        accepted, open_ended = signature_of(cls)
        own = dict(list(accepted.items())[given:])
        fit = {}
        for name, value in held.items():
            if not isinstance(name, str) or (name not in own and not open_ended):
                raise Misfit(f"has {shown(name)}, which {cls.__name__} does not take")
            annotation = own[name].annotation if name in own else inspect.Parameter.empty
            try:
                fit[name] = self._fit(value, annotation)
            except Untrusted:
                raise
            except Misfit as error:
                raise Misfit(f"has an argument {name} of {cls.__name__} that {error}") from error
        lacks = [k for k, p in own.items() if p.default is p.empty and k not in fit]
        if lacks:
            raise Misfit(f"lacks the argument {lacks[0]} of {cls.__name__}")
        return fit


class WrongKind(Misfit):
    """A value of the wrong kind."""

    def __init__(self, value: Any, kind: str) -> None:
        super().__init__(f"is {shown(value)}, not {kind}")


class Unsettable(Misfit):
    """A value for an argument that a checkpoint may not set, such as a function."""

    def __init__(self, value: Any) -> None:
        super().__init__(f"is {shown(value)}, which a checkpoint may not set: use a config")


def is_known(cls: type) -> bool:
    """Whether a class is makemoe's own, or one of torch's that a checkpoint may name."""
    path = f"torch.optim.{cls.__name__}"
    return cls.__module__.partition(".")[0] == OURS or (path in OF_TORCH and is_at(path, cls))


def is_at(path: str, cls: type) -> bool:
    """Whether a class is at the top of a loaded module under this path."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None) is cls


def signature_of(cls: type) -> tuple[Mapping[str, inspect.Parameter], bool]:
    """The named arguments of a class, annotations resolved, and whether it has **kwargs."""
    parameters = inspect.signature(cls).parameters
    try:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # names that only a type checker imports
        hints = {}
    named, open_ended = {}, False
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            annotation = hints.get(name, parameter.empty)
            named[name] = parameter.replace(annotation=annotation)
    return named, open_ended


def classes_of(made: Any) -> tuple[type, ...]:
    """The classes in the return annotation of a factory."""
    made = typing.get_args(made) or (made,)
    return tuple(cls for cls in made if isinstance(cls, type) and cls is not NoneType)


def shown(value: Any) -> str:
    """A short, printable description of an untrusted value."""
    if isinstance(value, int | float | str | NoneType) and len(text := short(value)) <= 60:
        return text
    return f"a {type(value).__name__}"


def as_plain(value: Any) -> Any:
    """An untrusted value as plain data that can be printed; what is not plain is named."""
    if isinstance(value, dict):
        return {str(as_plain(key)): as_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    if isinstance(value, str):
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
    return value if isinstance(value, bool | int | float | NoneType) else shown(value)


def short(value: Any) -> str:
    """The `repr` of a value, or a short text if that would be too long to compute."""
    if isinstance(value, str):
        return repr(value[:60])
    if isinstance(value, int) and abs(value) > LARGEST:
        return "an integer beyond 64 bits"
    return repr(value)


def _none(value: Any) -> None:
    if value is not None:
        raise WrongKind(value, "null")


def _bool(value: Any) -> bool:
    if type(value) is bool:
        return value
    raise WrongKind(value, "true or false")


def _int(value: Any) -> int:
    if type(value) is int and abs(value) <= LARGEST:
        return value
    raise WrongKind(value, "an integer")


def _float(value: Any) -> float:
    if type(value) is float or (type(value) is int and abs(value) <= LARGEST):
        return value
    raise WrongKind(value, "a number")


def _str(value: Any) -> FreeText:
    if type(value) is str:
        return FreeText(value)
    raise WrongKind(value, "a string")


def _scalar(value: Any) -> Any:
    """For an argument without an annotation: one plain value, or a list of them."""
    if isinstance(value, list | tuple) and len(value) <= MOST_ITEMS:
        return [_one(item) for item in value]
    return _one(value)


def _one(value: Any) -> Any:
    for fit in (_none, _bool, _int, _float, _str):
        try:
            return fit(value)
        except WrongKind:
            continue
    raise WrongKind(value, "a plain value")


PLAIN: dict[Any, Callable[[Any], Any]] = {
    None: _none,
    NoneType: _none,
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    Any: _scalar,
    inspect.Parameter.empty: _scalar,
}
"""The check for each plain annotation."""
