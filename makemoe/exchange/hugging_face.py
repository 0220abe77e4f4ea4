"""A checkpoint as a folder that transformers loads."""

from typing import Any

from torch import Tensor

from makemoe.checkpoint.format import Checkpoint
from makemoe.data.tokenizer import Tokenizer
from makemoe.errors import CheckpointError, DataError
from makemoe.exchange import tokens
from makemoe.exchange.blueprint import Blueprint, blueprint_of
from makemoe.exchange.card import card
from makemoe.exchange.contents import Contents, as_json
from makemoe.exchange.counterpart import Counterpart
from makemoe.exchange.known import KNOWN
from makemoe.exchange.mixtral import Mixtral
from makemoe.model.router import BiasedTopKRouter
from makemoe.model.transformer import MoETransformer

RECIPE = "mixtral"
"""The recipe for a model that has a counterpart."""

HEAD = """\
library_name: transformers
pipeline_tag: text-generation
"""

USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
inputs = tokenizer({prompt!r}, return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens={length})
print(tokenizer.decode(ids[0]))
```
"""


def for_transformers(
    checkpoint: Checkpoint, path: str, model: MoETransformer, tokenizer: Tokenizer, name: str
) -> Contents:
    """The contents of such a folder.

    Args:
        checkpoint: the checkpoint.
        path: its path, for messages.
        model: its model, in evaluation mode.
        tokenizer: its tokenizer.
        name: name of the folder.

    Raises:
        CheckpointError: naming all parts of the model that have no counterpart.
    """
    counterpart, blueprint = counterpart_of(model, path)
    try:
        of_tokens = tokenizer.to_json()
    except DataError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if of_tokens is None:
        raise CheckpointError(
            f"{path}: transformers has no counterpart of {type(tokenizer).__name__}; --format "
            "safetensors writes any model"
        )
    contents = Contents(counterpart.name, tensors(model, counterpart, blueprint), {})
    dtype = str(contents.dtype).removeprefix("torch.")
    # By default, transformers takes some of the first ids for these.
    end = tokenizer.end_of_text
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None}
    settings = counterpart.config(blueprint) | {"dtype": dtype} | special
    # How `makemoe predict` samples, instead of greedily.
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **special}
    length = max(1, min(200, model.block_size // 2))
    use = USE.format(name=name, prompt=tokenizer.beginning(), length=length)
    contents.files.update(
        {
            "config.json": as_json(settings),
            "generation_config.json": as_json(sampling),
            tokens.FILE: of_tokens.encode(),
            tokens.CONFIG: as_json(tokens.config(model.block_size, tokenizer)),
            "README.md": card(contents, checkpoint, model, tokenizer, name, HEAD, use),
        }
    )
    return contents


def counterpart_of(model: MoETransformer, path: str) -> tuple[Counterpart, Blueprint]:
    """The architecture that computes what a model does.

    Raises:
        CheckpointError: naming all parts for which there is none.
    """
    blueprint, named = blueprint_of(model)
    lacking, nearest = min(((one.lacks(blueprint), one) for one in KNOWN), key=lambda e: len(e[0]))
    if not named and not lacking:
        return nearest, blueprint
    raise CheckpointError(
        f"{path}: transformers has no counterpart of {', '.join([*named, *lacking])}; the nearest "
        f"is {nearest.name}; `makemoe fit --config {RECIPE}` trains a {Mixtral.name}, and --format "
        "safetensors writes any model"
    )


def tensors(
    model: MoETransformer, counterpart: Counterpart, blueprint: Blueprint
) -> dict[str, Tensor]:
    """The weights of a model as they are in a folder, by name."""
    held: dict[str, Any] = model.state_dict()
    for name, part in model.named_modules():
        if isinstance(part, BiasedTopKRouter):
            held[f"{name}.bias_E"] = part.used_bias_E  # one bias: with the shift of evaluation
    found: dict[str, Tensor] = {}
    for weight in counterpart.weights(blueprint, blueprint.n_head):
        parts = weight.take_apart(held[weight.name])
        found |= dict(zip(weight.tensors, parts, strict=True))
    return found
