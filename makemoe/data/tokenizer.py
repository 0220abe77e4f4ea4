"""Text to token ids and back."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from makemoe.data import tokenizer_json
from makemoe.data.characters import (
    code_points,
    distinct_characters,
    id_dtype,
    latin_1,
    text_of,
    total,
)
from makemoe.data.decoding import REPLACEMENT, AnyPieces, Decoder, Pieces, WholeCharacters
from makemoe.errors import DataError, UsageError

Ids = NDArray[np.integer[Any]]


END_OF_TEXT = "<|endoftext|>"
"""The symbol of the token between two documents."""


class UnknownCharacter(DataError):
    """A character that is not in the vocabulary."""


class Tokenizer(ABC):
    """Turns text into ids in [0, vocab_size) and back; `spec()` is enough to rebuild it.

    A token may be one character, several, or a part of one: nothing outside the tokenizer counts
    on one character per token. Decoding the ids of a text gives back the text.

    A text that is too large for memory comes in chunks, and a token may cross their borders. By
    default chunks are joined; a tokenizer that can do better overrides `fit_chunks` and
    `encode_chunks`.
    """

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether the tokenizer has a vocabulary."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of distinct ids."""

    @property
    def end_of_text(self) -> int | None:
        """The id that stands after each of several documents; None: a newline ends a document.

        No text contains it: it is not the characters of its symbol. It is decoded to nothing.
        """
        return None

    @abstractmethod
    def fit(self, text: str) -> Self:
        """Learn the vocabulary from `text`; an existing vocabulary is kept."""

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """Ids of `text`, shape (tokens,), in the smallest dtype that holds the vocabulary.

        Raises DataError, preferably UnknownCharacter, for text that the vocabulary cannot express.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Text of `ids`, shape (tokens,); U+FFFD for parts of characters that are not complete."""

    def decoder(self) -> Decoder:
        """A new decoder for ids that come one by one."""
        return AnyPieces(self.decode)

    def symbol(self, id: int) -> str:
        """The text of one token, for pictures; U+FFFD and the id if it alone is no text.

        A tokenizer that knows the bytes of such a token gives each as a lone surrogate, U+DC80 to
        U+DCFF, as Python's `surrogateescape` does.
        """
        text = self.decode([id])
        return f"{REPLACEMENT}{id}" if not text or REPLACEMENT in text else text

    def knows(self, character: str) -> bool:
        """Whether the vocabulary can express a character, wherever it stands."""
        try:
            self.encode(character)
        except DataError:
            return False
        return True

    def characters(self, ids: Ids) -> int:
        """Number of characters in the text of `ids`, shape (tokens,)."""
        return len(self.decode(ids))

    def utf8_bytes(self, ids: Ids) -> int:
        """Number of bytes of the text of `ids` in UTF-8, shape (tokens,)."""
        return len(self.decode(ids).encode(errors="surrogatepass"))

    def fit_chunks(self, chunks: Iterable[str]) -> Self:
        """`fit` for a text in chunks."""
        return self.fit("".join(chunks))

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        """`encode` for a text in chunks: arrays whose concatenation is the ids of the text."""
        yield self.encode("".join(chunks))

    def encode_parts(self, chunks: Iterable[str]) -> Iterator[tuple[Ids, str | None]]:
        """`encode_chunks`, and with each array what was read but is not encoded yet.

        Encoding may be interrupted there, and go on with that text. None: it may not.
        """
        for ids in self.encode_chunks(chunks):
            yield ids, None

    @abstractmethod
    def init_args(self) -> dict[str, Any]:
        """Constructor arguments that recreate this tokenizer, fitted or not.

        Plain str, int, list, dict and None only.
        """

    def restore(self, init_args: dict[str, Any]) -> None:
        """Set the state to that of a tokenizer built from `init_args`."""
        vars(self).update(vars(type(self)(**init_args)))

    def sources(self) -> list[type]:
        """The classes whose code determines the ids: if it changes, cached ids are not used."""
        return [cls for cls in type(self).__mro__ if issubclass(cls, Tokenizer)]

    def prompt(self, text: str = "") -> list[int]:
        """The ids a model starts with: those of a prompt, or else of what precedes any text.

        That is the end of another text. A tokenizer without such a token takes its `beginning`.
        """
        if not text and self.end_of_text is not None:
            return [self.end_of_text]
        ids: list[int] = self.encode(text or self.beginning()).tolist()
        return ids

    def beginning(self) -> str:
        """The start of a text without a prompt: a newline, or else the first id that is a text."""
        if self.knows("\n"):
            return "\n"
        alone = (self.decode([id]) for id in range(self.vocab_size))
        return next(text for text in alone if text and self.knows(text))

    def to_json(self) -> str | None:
        """The tokenizer as a tokenizer.json of the library `tokenizers`; None if it cannot be one.

        Raises DataError for a vocabulary that no JSON file can hold.
        """
        return None

    def spec(self) -> dict[str, Any]:
        """The tokenizer as plain data, in the `class_path` form of YAML and checkpoints."""
        cls = type(self)
        return {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "init_args": self.init_args(),
        }


class _CharacterByCharacter(Tokenizer):
    """Encodes each character by itself, so the ids of a chunk do not depend on other chunks."""

    @abstractmethod
    def _encode(self, text: str, offset: int) -> Ids:
        """Ids of `text`, which starts at character `offset` of the whole text.

        Raises UnknownCharacter, with its offset, for the first character without an id.
        """

    def encode(self, text: str) -> Ids:
        return self._encode(text, 0)

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        offset = 0
        for chunk in chunks:
            yield self._encode(chunk, offset)
            offset += len(chunk)

    def encode_parts(self, chunks: Iterable[str]) -> Iterator[tuple[Ids, str | None]]:
        return ((ids, "") for ids in self.encode_chunks(chunks))


class CharTokenizer(_CharacterByCharacter):
    """One id per character (Unicode code point).

    `vocabulary` lists the characters in the order of their ids; None: not fitted yet.
    Raises UsageError if it is empty or repeats a character.
    """

    def __init__(self, vocabulary: str | None = None) -> None:
        self.vocabulary = vocabulary
        if vocabulary is not None:
            self._build_tables(vocabulary)

    def _build_tables(self, vocabulary: str) -> None:
        if not vocabulary:
            raise UsageError("vocabulary is empty; it needs at least one character")
        codes_V = code_points(vocabulary)
        distinct, first = np.unique(codes_V, return_index=True)
        if len(distinct) < len(codes_V):
            repeated = vocabulary[np.setdiff1d(np.arange(len(codes_V)), first)[0]]
            raise UsageError(f"vocabulary repeats {repeated!r}; list each character once")
        self._codes_V = codes_V
        # Code points without an id map to V; the last entry stands for all larger code points.
        unknown = len(codes_V)
        self._ids_by_code = np.full(int(codes_V.max()) + 2, unknown, id_dtype(unknown + 1))
        self._ids_by_code[codes_V] = np.arange(len(codes_V))
        latin = self._ids_by_code.take(np.arange(256), mode="clip")
        self._ids_by_byte = np.minimum(latin, 255).astype(np.uint8).tobytes()

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
        """Use the distinct characters of `text`, sorted by code point, unless already fitted."""
        return self.fit_chunks([text])

    def fit_chunks(self, chunks: Iterable[str]) -> Self:
        if self.vocabulary is None:
            vocabulary = distinct_characters(chunks)
            self._build_tables(vocabulary)
            self.vocabulary = vocabulary
        return self

    def _encode(self, text: str, offset: int) -> Ids:
        """Ids, shape (characters,), as uint8, uint16 or int32."""
        unknown = self.vocab_size
        if unknown <= 256 and (latin := latin_1(text)) is not None:
            translated = latin.translate(self._ids_by_byte)
            # With all 256 ids in use, the unknown marker equals the last id: check below.
            if min(unknown, 255) not in translated:
                return np.frombuffer(translated, np.uint8)
        ids: Ids = self._ids_by_code.take(code_points(text), mode="clip")
        if ids.max(initial=0) == unknown:
            position = int((ids == unknown).argmax())
            character = text[position]
            raise UnknownCharacter(
                f"character {character!r} (U+{ord(character):04X}) at offset {offset + position} "
                f"is not one of the {unknown} that the tokenizer knows; remove it, or train on a "
                "text that contains it"
            )
        return ids.astype(id_dtype(unknown), copy=False)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Text of `ids`, shape (characters,), each in [0, vocab_size)."""
        assert self.vocabulary is not None, "fit the tokenizer first"
        index = np.asarray(ids, dtype=np.intp)
        # A negative index would silently count from the end.
        assert not index.size or (index.min() >= 0 and index.max() < self.vocab_size), (
            f"ids must lie in [0, {self.vocab_size})"
        )
        return text_of(self._codes_V[index])

    def decoder(self) -> Decoder:
        return WholeCharacters(self.decode)

    def symbol(self, id: int) -> str:
        return self.decode([id])

    def characters(self, ids: Ids) -> int:
        return len(ids)

    def utf8_bytes(self, ids: Ids) -> int:
        longer = (self._codes_V[:, None] >= [0x80, 0x800, 0x10000]).sum(-1)
        return total(1 + longer, ids)

    def to_json(self) -> str:
        assert self.vocabulary is not None, "fit the tokenizer first"
        return tokenizer_json.of_characters(self.vocabulary)

    def init_args(self) -> dict[str, Any]:
        """The vocabulary; None before fitting."""
        return {"vocabulary": self.vocabulary}


class ByteTokenizer(_CharacterByCharacter):
    """One id per byte of the text in UTF-8: 256 ids, which can express every text.

    A lone surrogate is an unknown character, because UTF-8 has none. Ids that are not UTF-8, which
    only a model produces, are decoded to U+FFFD.

    Args:
        end_of_text: add an id, 256, for the end of a text, which stands between two documents.
    """

    def __init__(self, end_of_text: bool = False) -> None:
        self.has_end = end_of_text
        bytes_V = np.append(np.ones(256, np.int64), 0)[: self.vocab_size]
        self._bytes_V = bytes_V
        # The bytes 0x80 to 0xBF continue a character.
        self._first_bytes_V = bytes_V * ((np.arange(len(bytes_V)) & 0xC0) != 0x80)

    @property
    def is_fitted(self) -> bool:
        """Always: there is nothing to learn from a text."""
        return True

    @property
    def vocab_size(self) -> int:
        """Number of distinct bytes, and the end of a text."""
        return 256 + self.has_end

    @property
    def end_of_text(self) -> int | None:
        return 256 if self.has_end else None

    def fit(self, text: str) -> Self:
        return self

    def fit_chunks(self, chunks: Iterable[str]) -> Self:
        return self

    def _encode(self, text: str, offset: int) -> Ids:
        """The bytes, shape (bytes,); only lone surrogates are unknown."""
        return np.frombuffer(utf_8(text, offset), np.uint8).astype(
            id_dtype(self.vocab_size), copy=False
        )

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return self._text_bytes(ids).decode(errors="replace")

    def _text_bytes(self, ids: Sequence[int] | Ids) -> bytes:
        index = np.asarray(ids, dtype=np.intp)
        assert not index.size or (index.min() >= 0 and index.max() < self.vocab_size), (
            "ids are bytes"
        )
        return index[index < 256].astype(np.uint8).tobytes()

    def decoder(self) -> Decoder:
        return Pieces(self._text_bytes)

    def symbol(self, id: int) -> str:
        return bytes([id]).decode(errors="surrogateescape") if id < 256 else END_OF_TEXT

    def characters(self, ids: Ids) -> int:
        """Number of characters whose first byte is among `ids`."""
        return total(self._first_bytes_V, ids)

    def utf8_bytes(self, ids: Ids) -> int:
        return total(self._bytes_V, ids)

    def to_json(self) -> str:
        return tokenizer_json.of_bytes(END_OF_TEXT if self.has_end else None)

    def init_args(self) -> dict[str, Any]:
        """Whether there is an end of a text, if there is."""
        return {"end_of_text": True} if self.has_end else {}


def utf_8(text: str, offset: int) -> bytes:
    """A text in UTF-8, which starts at character `offset` of the whole text.

    Raises:
        UnknownCharacter: for a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        character = text[error.start]
        raise UnknownCharacter(
            f"character {character!r} (U+{ord(character):04X}) at offset "
            f"{offset + error.start} is a lone surrogate, which UTF-8 does not have; remove it"
        ) from error
