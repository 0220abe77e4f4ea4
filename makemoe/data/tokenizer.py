"""Text to token ids and back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from makemoe.errors import DataError, UsageError

Ids = NDArray[np.integer[Any]]


class Tokenizer(ABC):
    """What turns text into ids in [0, vocab_size) and back; `spec()` alone rebuilds it."""

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether there is a vocabulary yet."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of distinct ids."""

    @abstractmethod
    def fit(self, text: str) -> Self:
        """Learn the vocabulary from `text`; a tokenizer that has one keeps it."""

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """Ids of `text`, shape (tokens,), in the smallest dtype that holds the vocabulary.

        Raises DataError for text that the vocabulary cannot express.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Text of `ids`, shape (tokens,)."""

    @abstractmethod
    def init_args(self) -> dict[str, Any]:
        """Arguments of the constructor that make this tokenizer again; plain str, int, dict."""

    def spec(self) -> dict[str, Any]:
        """The tokenizer as plain data, in the `class_path` form of YAML and of checkpoints."""
        cls = type(self)
        return {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "init_args": self.init_args(),
        }


class CharTokenizer(Tokenizer):
    """One id per character (Unicode code point).

    `vocabulary` holds the characters in id order; None means not fitted yet.
    Raises UsageError if it is empty or repeats a character.
    """

    def __init__(self, vocabulary: str | None = None) -> None:
        self.vocabulary = vocabulary
        if vocabulary is not None:
            self._build_tables(vocabulary)

    def _build_tables(self, vocabulary: str) -> None:
        if not vocabulary:
            raise UsageError("vocabulary is empty; it needs one character at least")
        codes_V = _code_points(vocabulary)
        distinct, first = np.unique(codes_V, return_index=True)
        if len(distinct) < len(codes_V):
            repeated = vocabulary[np.setdiff1d(np.arange(len(codes_V)), first)[0]]
            raise UsageError(f"vocabulary repeats {repeated!r}; list each character once")
        self._codes_V = codes_V
        # Code points without an id map to 0: `encode` finds them by looking back in `_codes_V`,
        # so no value is lost to a sentinel and 256 characters still fit into uint8.
        self._ids_by_code = np.zeros(int(codes_V.max()) + 1, dtype=_id_dtype(len(codes_V)))
        self._ids_by_code[codes_V] = np.arange(len(codes_V))

    @property
    def is_fitted(self) -> bool:
        """Whether the vocabulary was given or learned."""
        return self.vocabulary is not None

    @property
    def vocab_size(self) -> int:
        """Number of distinct characters."""
        assert self.vocabulary is not None, "fit the tokenizer first"
        return len(self.vocabulary)

    def fit(self, text: str) -> Self:
        """Take the distinct characters of `text`, sorted by code point, if there are none yet."""
        if self.vocabulary is None:
            vocabulary = "".join(sorted(set(text)))
            self._build_tables(vocabulary)
            self.vocabulary = vocabulary
        return self

    def encode(self, text: str) -> Ids:
        """Ids of `text`, shape (characters,), as uint8, uint16 or int32.

        Raises DataError for the first character that the vocabulary lacks.
        """
        assert self.vocabulary is not None, "fit the tokenizer first"
        codes = _code_points(text)
        ids: Ids = self._ids_by_code[np.minimum(codes, len(self._ids_by_code) - 1)]
        unknown = self._codes_V[ids] != codes
        if unknown.any():
            position = int(unknown.argmax())
            character = text[position]
            raise DataError(
                f"character {character!r} (U+{ord(character):04X}) at offset {position} is not "
                f"among the {self.vocab_size} the tokenizer knows; leave it out, or train on a "
                "text that has it"
            )
        return ids

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Text of `ids`, shape (characters,), each in [0, vocab_size)."""
        assert self.vocabulary is not None, "fit the tokenizer first"
        index = np.asarray(ids, dtype=np.intp)
        # A negative index would silently count from the end.
        assert not index.size or (index.min() >= 0 and index.max() < self.vocab_size), (
            f"ids must lie in [0, {self.vocab_size})"
        )
        return self._codes_V[index].tobytes().decode("utf-32-le", "surrogatepass")

    def init_args(self) -> dict[str, Any]:
        """The vocabulary."""
        assert self.vocabulary is not None, "fit the tokenizer first"
        return {"vocabulary": self.vocabulary}


def _code_points(text: str) -> NDArray[np.uint32]:
    """Code points of `text`, shape (characters,); lone surrogates pass as they are."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _id_dtype(vocab_size: int) -> type[np.integer[Any]]:
    if vocab_size <= 1 << 8:
        return np.uint8
    return np.uint16 if vocab_size <= 1 << 16 else np.int32
