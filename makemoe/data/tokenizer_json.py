"""Characters and bytes as a tokenizer.json, the format of the library `tokenizers`.

Written by hand, so that the library is needed only to read such a file. It writes the same again.
"""

import json
from collections.abc import Sequence
from typing import Any

from makemoe.errors import DataError

ONE_CHARACTER = r"[\s\S]"

NO_SUCH_TOKEN = ""
"""What stands for an unknown character. It is in no vocabulary, so that one is an error."""


def of_characters(vocabulary: str) -> str:
    """One token per character, in the order of the vocabulary.

    Raises:
        DataError: for a lone surrogate, which no file in UTF-8 can hold.
    """
    if surrogates := [one for one in vocabulary if "\ud800" <= one <= "\udfff"]:
        raise DataError(
            f"the vocabulary has the lone surrogate U+{ord(surrogates[0]):04X}, which no file in "
            "UTF-8 can hold"
        )
    alone = {
        "type": "Split",
        "pattern": {"Regex": ONE_CHARACTER},
        "behavior": "Isolated",
        "invert": False,
    }
    words = {character: id for id, character in enumerate(vocabulary)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": NO_SUCH_TOKEN}
    return _tokenizer(alone, {"type": "Fuse"}, model)


def of_bytes(end_of_text: str | None = None) -> str:
    """One token per byte of UTF-8, and one after them for the end of a text, if it has a name."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {character: byte for byte, character in enumerate(byte_characters())},
        "merges": [],
    }
    # A word may be the whole text: without merges, how texts are cut does not matter.
    added = [] if end_of_text is None else [_special(256, end_of_text)]
    return _tokenizer(level | {"use_regex": False}, level | {"use_regex": True}, model, added)


def byte_characters() -> str:
    """The visible character that stands for each byte in a byte-level vocabulary (GPT-2)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    stands = {byte: chr(byte) for byte in visible}
    stands |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return "".join(stands[byte] for byte in range(256))


def _special(id: int, content: str) -> dict[str, Any]:
    """A token that is no text."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": content, **flags, "special": True}


def _tokenizer(
    before: dict[str, Any],
    decoder: dict[str, Any],
    model: dict[str, Any],
    added: Sequence[dict[str, Any]] = (),
) -> str:
    parts: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": None,
        "pre_tokenizer": before,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(parts, ensure_ascii=False)
