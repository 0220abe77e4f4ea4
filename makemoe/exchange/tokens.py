"""The tokenizer of a folder, as data: a tokenizer.json, never code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from makemoe.errors import CheckpointError
from makemoe.exchange.config import read_json

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
COMPUTES = ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")
"""The parts of a tokenizer.json that determine ids and texts."""


def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer of a folder.

    Raises:
        CheckpointError: for a folder without one, or whose tokenizer is code or of another kind.
    """
    if (folder / CONFIG).exists():
        refuse_code(folder / CONFIG, read_json(folder / CONFIG))
    path = folder / FILE
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {FILE}: save its tokenizer with transformers, as a fast one"
        )
    held = read_json(path)
    for tokenizer in likely(held):
        if is_same(tokenizer, held):
            return tokenizer
    raise CheckpointError(f"{path}: only tokenizers of characters or of bytes are read")


def refuse_code(path: Path, settings: dict[str, Any]) -> None:
    """Raise CheckpointError for settings that name code to run."""
    for name in ("auto_map", "trust_remote_code"):
        if settings.get(name):
            raise CheckpointError(f"{path} asks to run code ({name}), which is never done")


def likely(held: dict[str, Any]) -> Iterator[Tokenizer]:
    """Yield the tokenizers that a tokenizer.json may be."""
    yield ByteTokenizer()
    model = held.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, dict) and words and all(len(word) == 1 for word in words):
        by_id = {id: word for word, id in words.items() if type(id) is int}
        if by_id.keys() == set(range(len(words))):
            yield CharTokenizer("".join(by_id[id] for id in range(len(words))))


def is_same(tokenizer: Tokenizer, held: dict[str, Any]) -> bool:
    """Whether a tokenizer.json computes what this tokenizer does.

    transformers adds a step after the ids, which does nothing without tokens of its own.
    """
    own = json.loads(tokenizer.to_json() or "{}")
    after = held.get("post_processor")
    adds = isinstance(after, dict) and bool(after.get("special_tokens", True))
    return not adds and all(own.get(name) == held.get(name) for name in COMPUTES)


def config(block_size: int) -> dict[str, Any]:
    """The tokenizer_config.json beside any tokenizer.json of ours."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        # Would remove spaces before punctuation.
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
