"""Reads a folder of another program as a checkpoint of weights alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from makemoe.checkpoint.describe import described
from makemoe.checkpoint.format import Checkpoint, is_all_finite, stamp
from makemoe.checkpoint.held import Reader, signature_of
from makemoe.checkpoint.inference import Unfilled, model_arguments, names_of_tied, rebuilt
from makemoe.data.tokenizer import Tokenizer
from makemoe.errors import CheckpointError, UsageError
from makemoe.exchange import plain
from makemoe.exchange.config import Config, read_json
from makemoe.exchange.counterpart import Counterpart, Found
from makemoe.exchange.known import KNOWN
from makemoe.exchange.tensors import Header, TensorFiles, check_types
from makemoe.exchange.tokens import refuse_code, tokenizer_in
from makemoe.exchange.weights import Weight
from makemoe.model.router import Router
from makemoe.model.transformer import MoETransformer

CONFIG = "config.json"
BIAS = ".bias_E"
"""End of the names of biases that are always in float32."""

BUILT_BY_THE_COMMAND_LINE = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}


class Taken(NamedTuple):
    """What a folder held.

    Attributes:
        kind: what it is, in words.
        checkpoint: a checkpoint of weights alone.
        notes: in words, what is not as it was.
    """

    kind: str
    checkpoint: Checkpoint
    notes: list[str]


def take(folder: Path, block_size: int | None = None, trusted: Sequence[str] = ()) -> Taken:
    """Read a folder.

    Args:
        folder: as `export` or transformers writes it.
        block_size: longest context of the model; None: the folder's.
        trusted: modules, besides makemoe, whose classes plain settings may name.

    Raises:
        CheckpointError: for a folder that holds no model, or one that makemoe does not have.
        UsageError: for a block size that the model cannot have, or if a library is missing.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"--from {folder} {what}: give a folder with a model")
    if (folder / CONFIG).exists():
        return from_transformers(folder, block_size)
    if (folder / plain.SETTINGS).exists():
        return from_plain(folder, block_size, trusted)
    raise CheckpointError(
        f"--from {folder} holds no model: it has neither {CONFIG} nor {plain.SETTINGS}"
    )


# -- plain weights


def from_plain(folder: Path, block_size: int | None, trusted: Sequence[str]) -> Taken:
    """Read plain weights with their settings."""
    held, tokenizer = plain.settings_in(folder)
    accepted, _ = signature_of(MoETransformer)
    settings = {name: value for name, value in held.items() if name in accepted}
    if block_size is not None:
        raise UsageError(f"--block_size: {folder} holds a model of makemoe, which has its own")
    checkpoint = without_weights(settings, tokenizer)
    model = built_empty(checkpoint, folder, trusted)
    with TensorFiles(folder) as files:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for _, *others in names_of_tied(model):
            for other in others:
                del shapes[other]
        check_headers(files.headers, shapes, folder)
        check_types([files.headers[name] for name, _ in model.named_parameters()], folder)
        weights = {name: files.read(name) for name in shapes}
    complete(checkpoint, model, weights, folder, trusted)
    return Taken("plain weights", checkpoint, [])


# -- transformers


def from_transformers(folder: Path, block_size: int | None) -> Taken:
    """Read a model of transformers."""
    config = Config(folder / CONFIG, read_json(folder / CONFIG))
    refuse_code(config.path, config.values)
    counterpart = architecture_of(config)
    found = counterpart.found(config)
    if config.has("quantization_config"):
        found.odd.append("quantised weights")
    if found.odd:
        raise CheckpointError(
            f"{config.path}: makemoe has no counterpart of {', '.join(found.odd)}"
        )
    found, notes = shortened(found, block_size, folder)
    tokenizer = tokenizer_in(folder)
    found, padded = without_padding(found, tokenizer, folder)
    checkpoint = without_weights(found.blueprint.settings(), tokenizer.spec())
    model = built_empty(checkpoint, folder)
    with TensorFiles(folder) as files:
        weights = read_weights(files, counterpart, found, padded, folder)
    complete(checkpoint, model, weights, folder)
    if found.key_value_heads < found.blueprint.n_head:
        notes.append(
            f"{found.key_value_heads} heads of keys and values, repeated for "
            f"{found.blueprint.n_head} heads: the same function with more weights"
        )
    if padded > found.blueprint.vocab_size:
        count = padded - found.blueprint.vocab_size
        notes.append(f"{count} tokens left out, which the tokenizer does not have")
    return Taken(counterpart.name, checkpoint, notes)


def architecture_of(config: Config) -> Counterpart:
    """The architecture that a config.json names; CheckpointError if it is none of the known."""
    model_type = config.word("model_type", "")
    named = config.values.get("architectures")
    names = named if isinstance(named, list) else []
    for one in KNOWN:
        if one.name in names or (not names and one.model_type == model_type):
            return one
    what = names[0] if names and isinstance(names[0], str) else model_type
    known = ", ".join(one.name for one in KNOWN)
    raise CheckpointError(
        f"{config.path} is of the architecture {what!r:.60}: makemoe has counterparts of {known}"
    )


def shortened(found: Found, block_size: int | None, folder: Path) -> tuple[Found, list[str]]:
    """What was found, with the context that the user asked for."""
    longest = found.blueprint.block_size
    if block_size is None or block_size == longest:
        return found, []
    if not 1 <= block_size <= longest:
        raise UsageError(
            f"--block_size {block_size} is out of range: {folder} has contexts of up to {longest} "
            "tokens"
        )
    blueprint = replace(found.blueprint, block_size=block_size)
    return found._replace(blueprint=blueprint), [f"contexts of {block_size} tokens, not {longest}"]


def without_padding(found: Found, tokenizer: Tokenizer, folder: Path) -> tuple[Found, int]:
    """What was found, with as many tokens as its tokenizer has; and how many it had.

    Models may have more, for a round number: no text has them.
    """
    had, has = found.blueprint.vocab_size, tokenizer.vocab_size
    if has > had:
        raise CheckpointError(
            f"{folder} has a tokenizer of {has} tokens, but its model has {had}: they do not "
            "belong together"
        )
    return found._replace(blueprint=replace(found.blueprint, vocab_size=has)), had


def read_weights(
    files: TensorFiles, counterpart: Counterpart, found: Found, padded: int, folder: Path
) -> dict[str, Tensor]:
    """The weights of the model, by their names here."""
    whole = replace(found.blueprint, vocab_size=padded)
    weights = list(counterpart.weights(whole, found.key_value_heads))
    shapes = {name: shape for weight in weights for name, shape in weight.tensors.items()}
    headers = dict(without_extras(files.headers, found))
    if "lm_head.weight" not in shapes and "lm_head.weight" in headers:
        del headers["lm_head.weight"]  # the embeddings, written twice
    check_headers(headers, shapes, folder)
    inexact = [headers[n] for w in weights for n in w.tensors if not w.name.endswith(BIAS)]
    check_types(inexact, folder)
    read = {weight.name: put_together(weight, files) for weight in weights}
    for name in ("token_embedding.weight", "head.weight"):
        if name in read:
            read[name] = read[name][: found.blueprint.vocab_size].clone()
    return read


def put_together(weight: Weight, files: TensorFiles) -> Tensor:
    """A weight of the model, in memory of its own."""
    whole = weight.put_together([files.read(name) for name in weight.tensors]).contiguous()
    return whole.float() if weight.name.endswith(BIAS) else whole


def without_extras(headers: dict[str, Header], found: Found) -> Iterator[tuple[str, Header]]:
    """The tensors, without layers after the last, which predict several tokens at once."""
    first = found.blueprint.n_layer
    extra = tuple(f"model.layers.{first + number}." for number in range(found.extra_layers))
    return ((name, header) for name, header in headers.items() if not name.startswith(extra))


# -- both


def without_weights(settings: dict[str, Any], tokenizer: Any) -> Checkpoint:
    """A checkpoint of a model that no run has trained here, so far without its weights."""
    defaults = {
        name: described(parameter.default)
        for name, parameter in signature_of(MoETransformer)[0].items()
        if parameter.default is not parameter.empty
    }
    checkpoint: Checkpoint = {
        "state_dict": {},
        "hyper_parameters": defaults | settings | BUILT_BY_THE_COMMAND_LINE,
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
    }
    stamp(checkpoint, tokenizer)
    return checkpoint


def built_empty(
    checkpoint: Checkpoint, folder: Path, trusted: Sequence[str] = ()
) -> MoETransformer:
    """The model of a checkpoint, whose weights are not filled and so take no memory yet.

    Raises:
        CheckpointError: for a model that cannot be, or that this machine cannot hold.
    """
    try:
        with Unfilled():
            return MoETransformer(**model_arguments(checkpoint, Reader(str(folder), trusted)))
    except (TypeError, UsageError) as error:
        raise CheckpointError(f"{folder} holds a model that cannot be built: {error}") from error


def check_headers(
    headers: dict[str, Header], shapes: dict[str, tuple[int, ...]], folder: Path
) -> None:
    """Raise CheckpointError if there are other tensors than these, or of other shapes."""
    different = {"lacks": shapes.keys() - headers.keys(), "has unknown": headers.keys() - shapes}
    for verb, names in different.items():
        if names:
            raise CheckpointError(
                f"{folder} {verb} {len(names)} tensors, for example {min(names):.80}"
            )
    for name, shape in shapes.items():
        if headers[name].shape != shape:
            raise CheckpointError(
                f"{folder}: {name} has the shape {list(headers[name].shape)}, not {list(shape)}"
            )


def complete(
    checkpoint: Checkpoint,
    model: MoETransformer,
    weights: dict[str, Tensor],
    folder: Path,
    trusted: Sequence[str] = (),
) -> None:
    """Put the weights into a checkpoint, and make sure that a model can be built from it."""
    for name, weight in weights.items():
        if weight.numel() and not is_all_finite(weight):
            raise CheckpointError(f"{folder}: {name} is not finite (NaN or infinite)")
    for first, *others in names_of_tied(model):
        weights |= dict.fromkeys(others, weights[first])
    for path, part in model.named_modules():
        for name in part.derived if isinstance(part, Router) else ():
            weights.setdefault(f"{path}.{name}", torch.zeros_like(part.get_buffer(name)))
    checkpoint["state_dict"] = {f"net.{name}": weight for name, weight in weights.items()}
    rebuilt(checkpoint, folder, trusted)
