"""Rebuilds the model and the tokenizer from a checkpoint."""

import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from makemoe.checkpoint.archive import damaged
from makemoe.checkpoint.format import KEY, Checkpoint, read
from makemoe.checkpoint.held import Part, Reader, made, signature_of
from makemoe.checkpoint.in_pieces import whole_of
from makemoe.data.tokenizer import Tokenizer
from makemoe.errors import CheckpointError, UsageError
from makemoe.model.transformer import MoETransformer

SURROGATE = re.compile("[\ud800-\udfff]")

UNUSED = ("init",)
"""Arguments of the model that are needed only in training."""


def load_for_inference(
    path: str | os.PathLike[str], trusted: Sequence[str] = ()
) -> tuple[MoETransformer, Tokenizer]:
    """Rebuild the model, in evaluation mode, and the tokenizer from a checkpoint.

    Args:
        path: the checkpoint.
        trusted: modules, besides makemoe, whose classes the checkpoint may name.

    Raises:
        CheckpointError: for a file that cannot be read or trusted, or does not contain a model.
    """
    return rebuilt(read(path), path, trusted)


def rebuilt(
    checkpoint: Checkpoint, path: str | os.PathLike[str], trusted: Sequence[str] = ()
) -> tuple[MoETransformer, Tokenizer]:
    """`load_for_inference` for a checkpoint that was read already."""
    reader = Reader(os.fspath(path), trusted)
    tokenizer = held_tokenizer(checkpoint, reader)
    weights = {
        name.removeprefix("net."): whole_of(tensor)
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith("net.")
    }
    try:
        with Unfilled():
            model = MoETransformer(**model_arguments(checkpoint, reader))
    except (TypeError, UsageError) as error:
        raise CheckpointError(f"{path} does not contain the model it describes: {error}") from error
    assign(model, weights, reader.path)
    if tokenizer.vocab_size != model.vocab_size:
        damaged(path, f"it has {tokenizer.vocab_size} symbols for {model.vocab_size} embeddings")
    return model.eval(), tokenizer


def held_tokenizer(checkpoint: Checkpoint, reader: Reader) -> Tokenizer:
    """The fitted tokenizer of a checkpoint."""
    spec = checkpoint[KEY].get("tokenizer")
    if spec is None:
        raise CheckpointError(
            f"{reader.path} has no tokenizer: it was trained without a TextDataModule"
        )
    tokenizer = built_tokenizer(reader.value(spec, Tokenizer, "tokenizer"), reader.path)
    if not tokenizer.is_fitted:
        damaged(reader.path, "its tokenizer has no vocabulary")
    return tokenizer


def built_tokenizer(part: Part, path: str) -> Tokenizer:
    """The tokenizer that a checkpoint describes; CheckpointError if there can be none."""
    try:
        tokenizer: Tokenizer = part.factory()()
    except UsageError as error:
        damaged(path, f"its tokenizer: {error}")
    symbols = tokenizer.init_args().get("vocabulary")
    odd = SURROGATE.search(symbols) if isinstance(symbols, str) else None
    if odd is not None:
        damaged(path, f"its tokenizer has the lone surrogate U+{ord(odd[0]):X}, which no text has")
    return tokenizer


def model_arguments(checkpoint: Checkpoint, reader: Reader) -> dict[str, Any]:
    """The checked model arguments of a checkpoint, ready to build the model with."""
    accepted, _ = signature_of(MoETransformer)
    held = checkpoint.get("hyper_parameters", {})
    arguments = {}
    for name, value in held.items():
        if name in accepted and name not in UNUSED:
            annotation = accepted[name].annotation
            arguments[name] = made(reader.value(value, annotation, f"model.{name}"))
    return arguments


def assign(model: MoETransformer, weights: dict[str, Tensor], path: str) -> None:
    """Replace a model's weights.

    Raises:
        CheckpointError: for weights that do not fit the model.
    """
    own = model.state_dict(keep_vars=True)
    tied = names_of_tied(model)
    for first, *others in tied:
        for name in others:
            if first in weights and name in weights and differ(weights[first], weights[name]):
                damaged(path, f"its weights {first} and {name} differ, but are one in the model")
    kinds = {weights[name].dtype for name, _ in model.named_parameters() if name in weights}
    for name, weight in weights.items():
        expected = own[name].dtype if name in own else weight.dtype
        if not weight.is_floating_point() or (weight.dtype != expected and len(kinds) > 1):
            damaged(path, f"its weight {name} has the type {weight.dtype}")
    try:
        odd = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).splitlines()[1].split())
        damaged(path, f"its weights do not fit its sizes: {reason}")
    for what, names in (("missing", odd.missing_keys), ("unknown", odd.unexpected_keys)):
        if names:
            damaged(path, f"{len(names)} weights are {what}, for example {min(names)}")
    for first, *others in tied:
        for name in others:
            module, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(module), attribute, model.get_parameter(first))


def names_of_tied(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several, because several modules use it."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [several for several in names.values() if len(several) > 1]


def differ(one: Tensor, other: Tensor) -> bool:
    """Whether two saved weights have different bytes."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return True
    return not torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


class Unfilled(TorchFunctionMode):
    """Skips the initialisation of new weights, because loaded ones replace them.

    The meta device would work too, but filling a tensor there makes torch import its compiler,
    which takes a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "zeros_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
