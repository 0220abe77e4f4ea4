"""Which classes a checkpoint may name: its word is a stranger's."""

import contextlib
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import yaml

from makemoe.errors import CheckpointError

TRUSTED = ("makemoe", "torch.optim")
DOTTED_NAME = re.compile(r"\w+(\.\w+)+")


def factory(spec: Any, base: type, trusted: Sequence[str] = ()) -> Any:
    """The constructor a `class_path` / `init_args` specification stands for.

    Raises:
        CheckpointError: for a class that is not trusted, not there, or not a `base`.
    """
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        raise CheckpointError(f"the checkpoint names no class where a {base.__name__} should be")
    class_path, init_args = spec["class_path"], spec.get("init_args") or {}
    check_trusted([class_path], trusted)
    module_name, _, class_name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint needs {class_path}, which is not here") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise CheckpointError(f"the checkpoint names {class_path}, which is no {base.__name__}")
    return partial(cls, **init_args)


def check_trusted(class_paths: Iterable[str], trusted: Sequence[str] = ()) -> None:
    """Refuse classes that a checkpoint may not name: its word is a stranger's.

    Of the modules that are always trusted, only what they define: they import much else.
    """
    for class_path in class_paths:
        always = _is_in(class_path, TRUSTED) and _is_own(class_path)
        if not always and not _is_in(class_path, trusted):
            module = class_path.rpartition(".")[0]
            raise CheckpointError(
                f"the checkpoint asks for the class {class_path}: "
                f"if you trust that code, add --trust {module}"
            )


def _is_in(class_path: str, modules: Iterable[str]) -> bool:
    return any(class_path.startswith(f"{module}.") for module in modules)


def _is_own(class_path: str) -> bool:
    """Whether the module that a name goes through is one, and not what another has imported."""
    module_name, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError:
        return False
    return found is None or _is_in(f"{getattr(found, '__module__', '')}.", TRUSTED)


def names_in(spec: Any) -> Iterator[str]:
    """Every string in a specification that a parser could take for something to import.

    A parser also reads a string as YAML, and as the name of a file that holds YAML.
    """
    if isinstance(spec, str):
        if DOTTED_NAME.fullmatch(spec) or os.path.exists(spec):
            yield spec
            return
        with contextlib.suppress(yaml.YAMLError, ValueError):
            content = yaml.safe_load(spec)
            if content != spec:
                yield from names_in(content)
    elif isinstance(spec, dict):
        for inner in spec.values():
            yield from names_in(inner)
    elif isinstance(spec, list | tuple):
        for inner in spec:
            yield from names_in(inner)
