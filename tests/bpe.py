"""A small byte-level BPE, and the library itself as the truth about it."""

import json
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from makemoe.data.bpe import BPETokenizer
from makemoe.data.tokenizer import END_OF_TEXT
from makemoe.data.vocabulary import PATTERN

TEXT = (
    "KING:\nI'll tell thee, 'tis 1234 o'clock; the king's men aren't here.\r\n\r\n"
    "\tThe  kings   and\n\n  the men tell the king: «Öl» ist süß, 漢字 und \U0001f600!\n" * 3
)
SIZE = 320


@cache
def learned(end_of_text: str | None) -> str:
    return BPETokenizer(SIZE, end_of_text).fit(TEXT).to_json()


def fitted(end_of_text: str | None = END_OF_TEXT) -> BPETokenizer:
    """A new tokenizer that has learned the text."""
    return BPETokenizer(SIZE, end_of_text, learned(end_of_text))


def held(**changes: Any) -> dict[str, Any]:
    """The vocabulary as it is stored, with other parts."""
    plain: dict[str, Any] = json.loads(fitted().to_json())
    return plain | changes


def reference(tokenizer: BPETokenizer) -> Tokenizer:
    """The library's tokenizer, which takes special tokens for ordinary text too."""
    found = Tokenizer.from_str(tokenizer.to_json())
    found.encode_special_tokens = True
    return found


def words(text: str) -> list[str]:
    """The words of a text, in the characters that stand for bytes."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return [word for word, _ in split.pre_tokenize_str(text)]
