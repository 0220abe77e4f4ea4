"""The tokenizer of a folder, as data: a tokenizer.json, never code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from makemoe.data.bpe import BPETokenizer
from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from makemoe.errors import CheckpointError, UsageError
from makemoe.exchange.config import read_json

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
COMPUTES = ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")
"""The parts of a tokenizer.json that determine ids and texts."""


def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer of a folder.

    Raises:
        CheckpointError: for a folder without one, or whose tokenizer is code or of another kind.
    """
    settings = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    refuse_code(folder / CONFIG, settings)
    path = folder / FILE
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {FILE}: save its tokenizer with transformers, as a fast one"
        )
    held = read_json(path)
    for tokenizer in likely(held):
        if is_same(tokenizer, held):
            return tokenizer
    if kind_of(held) == "BPE":
        return sub_words(path, held, end_in(settings))
    raise CheckpointError(
        f"{path}: only tokenizers of characters or of bytes are read, and byte-level BPE"
    )


def refuse_code(path: Path, settings: dict[str, Any]) -> None:
    """Raise CheckpointError for settings that name code to run."""
    for name in ("auto_map", "trust_remote_code"):
        if settings.get(name):
            raise CheckpointError(f"{path} asks to run code ({name}), which is never done")


def likely(held: dict[str, Any]) -> Iterator[Tokenizer]:
    """Yield the tokenizers that a tokenizer.json may be."""
    yield ByteTokenizer()
    yield ByteTokenizer(end_of_text=True)
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
    return not adds_tokens(held) and all(own.get(name) == held.get(name) for name in COMPUTES)


def adds_tokens(held: dict[str, Any]) -> bool:
    """Whether the steps after the ids of a text may add some."""
    after = held.get("post_processor")
    steps = after.get("processors", [after]) if isinstance(after, dict) else [after]
    return not isinstance(steps, list) or any(
        step is not None
        and not (isinstance(step, dict) and step.get("type") == "ByteLevel")
        and not (isinstance(step, dict) and step.get("special_tokens") == {})
        for step in steps
    )


def kind_of(held: dict[str, Any]) -> Any:
    """The kind of model in a tokenizer.json; in older ones, it is BPE if they do not say."""
    model = held.get("model")
    return model.get("type", "BPE") if isinstance(model, dict) else None


def end_in(settings: dict[str, Any]) -> str | None:
    """The end-of-text token that a tokenizer_config.json names."""
    named = settings.get("eos_token")
    content = named.get("content") if isinstance(named, dict) else named
    return content if isinstance(content, str) else None


def sub_words(path: Path, held: dict[str, Any], end_of_text: str | None) -> Tokenizer:
    """The sub-words of a tokenizer.json, whose end of a text may be one of its special tokens.

    Raises:
        CheckpointError: for one that is no byte-level BPE, or adds tokens to every text.
    """
    if adds_tokens(held):
        raise CheckpointError(f"{path}: it adds tokens to every text, and makemoe adds none")
    text = json.dumps(held, ensure_ascii=False)
    try:
        found = BPETokenizer(end_of_text=None, vocabulary=text)
        if end_of_text in found.special_symbols:
            found = BPETokenizer(end_of_text=end_of_text, vocabulary=text)
    except UsageError as error:
        raise CheckpointError(f"{path}: its {error}") from error
    return found


def config(block_size: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer_config.json beside any tokenizer.json of ours."""
    end = tokenizer.end_of_text
    named = {} if end is None else dict.fromkeys(("bos_token", "eos_token"), tokenizer.symbol(end))
    return named | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        # Would remove spaces before punctuation.
        "clean_up_tokenization_spaces": False,
        # The symbol of a special token is ordinary text in a text.
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
    }
