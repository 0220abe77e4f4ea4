"""The one way a checkpoint is written and read: whole or not at all, and without trusting it.

A checkpoint is a file that others may have made. It is read with `weights_only=True`, so that no
code in it runs, and the classes it names are built only if they are ours, torch's optimizers, or
of a module the user trusts by name. Nothing here needs Lightning: sampling reads checkpoints too.
"""

import contextlib
import importlib
import inspect
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.overrides import TorchFunctionMode

from makemoe import __version__
from makemoe.data.tokenizer import Tokenizer
from makemoe.errors import CheckpointError
from makemoe.files import replacing
from makemoe.model.experts import Experts
from makemoe.model.router import Router
from makemoe.model.transformer import MoETransformer

FORMAT = 1
"""Version of what is in a checkpoint; raised when an older makemoe could not read it."""

KEY = "makemoe"
TRUSTED = ("makemoe", "torch.optim")
DOTTED_NAME = re.compile(r"\w+(\.\w+)+")

Checkpoint = dict[str, Any]


def stamp(checkpoint: Checkpoint, tokenizer: dict[str, Any] | None) -> None:
    """Mark a Lightning checkpoint as ours, and put the tokenizer's specification in it."""
    ours = checkpoint.setdefault(KEY, {})
    ours.update(format=FORMAT, version=__version__, tokenizer=tokenizer)


def write(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint so that at every instant `path` holds the old one or the new one, whole.

    Raises:
        CheckpointError: when the folder or the disk does not take it; `path` is as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:
        # torch reports a short write as a RuntimeError.
        reason = getattr(error, "strerror", None) or "the disk took only a part of it (full?)"
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {reason}; "
            "free some space there, or choose another folder with --run.root"
        ) from error


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> Checkpoint:
    """Read a checkpoint of ours, running none of its code.

    Raises:
        CheckpointError: for a file that is missing, cut short, not a checkpoint of makemoe's, of
            another version, or that asks for code to be run.
    """
    if "://" in os.fspath(path):
        raise CheckpointError(f"{path} is an address, not a file: download it, then pass the file")
    if os.path.isdir(path):
        raise CheckpointError(f"{path} is a folder: pass the file in it, such as {path}/last.ckpt")
    try:
        # Said in full: an environment variable can turn the default off.
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no checkpoint {path}: see which there are: ls checkpoints"
        ) from error
    except PermissionError as error:
        raise CheckpointError(f"no permission to read the checkpoint {path}") from error
    except Exception as error:
        raise CheckpointError(f"cannot read {path}: {_why_unreadable(path, error)}") from error
    ours = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of makemoe's")
    if ours.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {ours.get('format')}, written by makemoe "
            f"{ours.get('version')}; this is makemoe {__version__}, which reads format {FORMAT}"
        )
    found: Checkpoint = checkpoint
    return found


def load_for_inference(
    path: str | os.PathLike[str], trusted: Sequence[str] = ()
) -> tuple[MoETransformer, Tokenizer]:
    """The model, in evaluation mode, and the tokenizer a checkpoint alone rebuilds.

    Args:
        path: the checkpoint.
        trusted: modules, besides makemoe, whose classes the checkpoint may name.
    """
    checkpoint = read(path)
    spec = checkpoint[KEY].get("tokenizer")
    if not isinstance(spec, dict):
        raise CheckpointError(f"{path} holds no tokenizer: it was trained without a TextDataModule")
    accepted = inspect.signature(MoETransformer).parameters
    try:
        hyper = checkpoint["hyper_parameters"]
        net = {name: value for name, value in hyper.items() if name in accepted and name != "init"}
        for name, base in {"router": Router, "experts": Experts}.items():
            if net.get(name) is not None:
                net[name] = factory(net[name], base, trusted)
        weights = {
            name.removeprefix("net."): tensor
            for name, tensor in checkpoint["state_dict"].items()
            if name.startswith("net.")
        }
        tokenizer = factory(spec, Tokenizer, trusted)()
        with Unfilled():
            model = MoETransformer(**net)
        odd = model.load_state_dict(weights, strict=False, assign=True)
        for what, names in (("missing", odd.missing_keys), ("unknown", odd.unexpected_keys)):
            if names:
                raise ValueError(f"{len(names)} weights are {what}, {min(names)} the first")
        if tokenizer.vocab_size != model.vocab_size:
            raise ValueError(f"{tokenizer.vocab_size} symbols for {model.vocab_size} embeddings")
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not hold the model it describes: {reason}") from error
    return model.eval(), tokenizer


class Unfilled(TorchFunctionMode):
    """Leaves new weights as they come from memory: others are about to take their place.

    The meta device would do, but to fill a tensor there torch imports its compiler, for a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "zeros_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


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


def _why_unreadable(path: str | os.PathLike[str], error: Exception) -> str:
    """Torch's many words about a bad file, in a few."""
    with open(path, "rb") as file:
        begins_as_zip = file.read(2) == b"PK"
    if not begins_as_zip:
        return "it is not a checkpoint"
    if not zipfile.is_zipfile(path):
        return "it is cut short"
    if isinstance(error, pickle.UnpicklingError):
        return "it asks for code to be run while loading, which no checkpoint of makemoe's does"
    return "it is not a checkpoint, or it is damaged"
