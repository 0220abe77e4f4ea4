"""Turns ids into text while they come: a token may end inside a character."""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What decoding puts in place of bytes that are not, or not yet, a character."""

LONGEST_START = 3
"""Maximum number of tokens of an incomplete character, whose bytes are at most four in UTF-8."""


class Decoder(ABC):
    """The text of a sequence of ids, in parts; joined, the parts are what `decode` returns."""

    @abstractmethod
    def push(self, ids: Sequence[int]) -> str:
        """The text that the next ids complete; what later ids may still change is held back."""

    @abstractmethod
    def end(self) -> str:
        """The text that is still held back; no more ids may come."""


class WholeCharacters(Decoder):
    """For tokens that consist of whole characters: holds nothing back.

    Args:
        decode: `decode` of a tokenizer, for which the text of two sequences is that of the first
            and that of the second.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode

    def push(self, ids: Sequence[int]) -> str:
        return self.decode(ids)

    def end(self) -> str:
        return ""


class AnyPieces(Decoder):
    """For tokens that may end inside a character: holds back a U+FFFD at the end of the text.

    Args:
        decode: `decode` of a tokenizer, which turns an incomplete character into one U+FFFD. The
            text of an id may depend on ids before it only through the bytes of such a character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.held: list[int] = []
        self.known = 0  # characters of the held ids' text that were returned

    def push(self, ids: Sequence[int]) -> str:
        self.held = [*self.held, *ids]
        text = self.decode(self.held)
        certain = len(text) - text.endswith(REPLACEMENT)
        new = text[self.known : certain]
        self.known = certain
        if certain == len(text):
            self.held, self.known = [], 0
        elif (start := self.decode(self.held[-LONGEST_START:])).endswith(REPLACEMENT):
            # Otherwise a long run of bytes that are no text would be decoded again and again.
            self.held, self.known = self.held[-LONGEST_START:], len(start) - 1
        return new

    def end(self) -> str:
        rest = self.decode(self.held)[self.known :]
        self.held, self.known = [], 0
        return rest


class Pieces(Decoder):
    """For tokens that are pieces of a text in UTF-8: holds back the start of a character.

    Args:
        bytes_of: the bytes of a sequence of ids.
    """

    def __init__(self, bytes_of: Callable[[Sequence[int]], bytes]) -> None:
        self.bytes_of = bytes_of
        self.utf_8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        return self.utf_8.decode(self.bytes_of(ids))

    def end(self) -> str:
        return self.utf_8.decode(b"", final=True)
