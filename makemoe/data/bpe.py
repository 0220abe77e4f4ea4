"""Sub-word tokens: byte-level BPE, learned from a text with the library `tokenizers`."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from tqdm import tqdm

from makemoe.data.characters import id_dtype, total
from makemoe.data.decoding import REPLACEMENT, Decoder, Pieces
from makemoe.data.tokenizer import END_OF_TEXT, Ids, Tokenizer, utf_8
from makemoe.data.vocabulary import (
    GPT4_SEGMENT,
    MOST_TOKENS,
    PATTERN,
    Segment,
    Vocabulary,
    read_vocabulary,
)
from makemoe.errors import DataError, MissingPackageError, UsageError

if TYPE_CHECKING:
    import tokenizers

MOST_LEARNED_FROM = 32 << 20
"""Characters a vocabulary is learned from: of a longer text, an even sample."""

LONGEST_SEGMENT = 1 << 20
"""Maximum number of characters without a place to cut; the library may fail at longer ones."""

MOST_KNOWN, LONGEST_KNOWN = 1 << 18, 32
"""Segments whose ids are remembered, and their characters; they take up to 120 MB."""

BAR_DELAY_S = 1.0
"""Seconds after which a progress bar appears."""

PARALLELISM = "TOKENIZERS_PARALLELISM"
"""Environment variable of the library: whether it uses several threads."""


def is_unicode(text: str) -> bool:
    """Whether a text has no surrogates, which stand for bytes that are none."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


class BPETokenizer(Tokenizer):
    """Sub-word tokens: the 256 bytes, and the sequences of bytes that are frequent in the text.

    Byte-level BPE: starting with bytes, the most frequent pair of neighbouring tokens becomes a new
    token, again and again (arXiv:1508.07909, section 3.2; on bytes as in GPT-2). A token never
    crosses the border of a word. Every text can be expressed. Needs the extra `makemoe[bpe]`.

    Args:
        vocab_size: number of tokens to learn, with the 256 bytes and the end of a text.
        end_of_text: symbol of the token that stands between two documents; null: there is none.
        vocabulary: what was learned, the text of a tokenizer.json; null: not fitted yet.

    Raises:
        UsageError: for a vocabulary that is no byte-level BPE, or is too small; for an end of a
            text that is empty or no Unicode text.
        MissingPackageError: for a vocabulary without the library.
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        end_of_text: str | None = END_OF_TEXT,
        vocabulary: str | None = None,
    ) -> None:
        least = 256 + (end_of_text is not None)
        if not least <= vocab_size <= MOST_TOKENS:
            tokens = "256 bytes" + (" and the end of a text" if end_of_text is not None else "")
            raise UsageError(
                f"vocab_size {vocab_size} is out of range: use {least} ({tokens}) to {MOST_TOKENS}"
            )
        if end_of_text is not None and not (end_of_text and is_unicode(end_of_text)):
            raise UsageError(
                f"end_of_text {end_of_text!r:.60} is no text: give a symbol such as {END_OF_TEXT}"
            )
        self.wanted, self.symbol_of_end = vocab_size, end_of_text
        self.vocabulary: str | None = None
        if vocabulary is not None:
            self._take(vocabulary)

    def _take(self, vocabulary: str) -> None:
        """Use a vocabulary."""
        held = read_vocabulary(vocabulary)
        if self.symbol_of_end is not None and self.symbol_of_end not in held.special:
            raise UsageError(
                f"end_of_text {self.symbol_of_end!r:.60} is no special token of the vocabulary"
            )
        self._library = built(held)
        self._segment = held.segment
        self._special = {id: content for content, id in held.special.items()}
        self._pieces_V = held.pieces_V
        self._bytes_V = np.array([len(piece) for piece in self._pieces_V])
        # The bytes 0x80 to 0xBF continue a character.
        self._first_bytes_V = np.array(
            [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self._pieces_V]
        )
        self._known = _Known(self._library, id_dtype(len(self._pieces_V)))
        self.vocabulary = str(vocabulary)

    @property
    def is_fitted(self) -> bool:
        """Whether the vocabulary was given or learned."""
        return self.vocabulary is not None

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        assert self.is_fitted, "fit the tokenizer first"
        return len(self._pieces_V)

    @property
    def end_of_text(self) -> int | None:
        assert self.is_fitted, "fit the tokenizer first"
        if self.symbol_of_end is None:
            return None
        return next(id for id, content in self._special.items() if content == self.symbol_of_end)

    @property
    def special_symbols(self) -> list[str]:
        """The symbols of its special tokens."""
        return list(self._special.values())

    def to_json(self) -> str:
        """The vocabulary as the text of a tokenizer.json, which other tools read."""
        assert self.vocabulary is not None, "fit the tokenizer first"
        return self.vocabulary

    # -- learning

    def fit(self, text: str) -> Self:
        """Learn `vocab_size` tokens from the text, unless already fitted.

        Raises:
            DataError: for a text with fewer sequences that occur twice.
        """
        return self.fit_chunks([text])

    def fit_chunks(self, chunks: Iterable[str]) -> Self:
        if self.vocabulary is None:
            library()  # before a large text is read
            parts = segments(checked(chunks), GPT4_SEGMENT)
            sample = even_sample(("".join(found) for found, _ in parts), MOST_LEARNED_FROM)
            self._take(learned(sample, self.wanted, self.symbol_of_end))
        return self

    # -- encoding

    def encode(self, text: str) -> Ids:
        """Ids, shape (tokens,), as uint8, uint16 or int32."""
        none = np.empty(0, id_dtype(self.vocab_size))
        return np.concatenate([none, *self.encode_chunks([text])])

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        return (ids for ids, _ in self.encode_parts(chunks))

    def encode_parts(self, chunks: Iterable[str]) -> Iterator[tuple[Ids, str | None]]:
        assert self.is_fitted, "fit the tokenizer first"
        dtype = id_dtype(self.vocab_size)
        for found, rest in segments(checked(chunks), self._segment):
            if len(self._known) > MOST_KNOWN:
                self._known.clear()
            yield np.frombuffer(b"".join(map(self._known.__getitem__, found)), dtype), rest

    def knows(self, character: str) -> bool:
        return not "\ud800" <= character <= "\udfff"

    # -- decoding

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return self._text_bytes(ids).decode(errors="replace")

    def _text_bytes(self, ids: Sequence[int] | Ids) -> bytes:
        index: list[int] = np.asarray(ids, dtype=np.intp).tolist()
        assert not index or min(index) >= 0, "ids are not negative"
        return b"".join([self._pieces_V[id] for id in index])

    def decoder(self) -> Decoder:
        return Pieces(self._text_bytes)

    def symbol(self, id: int) -> str:
        if id in self._special:
            return self._special[id]
        piece = self._pieces_V[id]
        return piece.decode(errors="surrogateescape") if piece else f"{REPLACEMENT}{id}"

    def characters(self, ids: Ids) -> int:
        """Number of characters whose first byte is in `ids`."""
        return total(self._first_bytes_V, ids)

    def utf8_bytes(self, ids: Ids) -> int:
        return total(self._bytes_V, ids)

    def sources(self) -> list[type]:
        return [*super().sources(), Vocabulary]

    def init_args(self) -> dict[str, Any]:
        """The vocabulary, None before fitting, and what else makes the ids."""
        return {
            "vocab_size": self.vocab_size if self.is_fitted else self.wanted,
            "end_of_text": self.symbol_of_end,
            "vocabulary": self.vocabulary,
        }


class _Known(dict[str, bytes]):
    """The ids of segments, as bytes of an array; a new one is encoded by the library.

    Few segments are new, so this is many times as fast as the library.
    """

    def __init__(self, library: "tokenizers.Tokenizer", dtype: type[np.integer[Any]]) -> None:
        self.library, self.dtype = library, dtype

    def __missing__(self, segment: str) -> bytes:
        try:
            ids = self.library.encode(segment, add_special_tokens=False).ids
        except BaseException as error:
            if is_failure(error):
                raise DataError(f"the tokenizer's pattern fails at a text: {error}") from None
            raise
        found = np.array(ids, self.dtype).tobytes()
        if len(segment) <= LONGEST_KNOWN:
            self[segment] = found
        return found


def checked(chunks: Iterable[str]) -> Iterator[str]:
    """The chunks; UnknownCharacter for a lone surrogate, which no bytes stand for."""
    offset = 0
    for chunk in chunks:
        utf_8(chunk, offset)
        yield chunk
        offset += len(chunk)


def segments(chunks: Iterable[str], segment: Segment | None) -> Iterator[tuple[list[str], str]]:
    """The segments of a text in chunks, and the rest: the start of the next segment.

    They do not depend on the chunks, and those after a rest do not depend on what is before it.

    Raises:
        DataError: for a text with a segment that is too long.
    """
    if segment is None:
        yield ["".join(chunks)], ""
        return
    rest = ""
    for chunk in chunks:
        text = rest + chunk
        found = segment.findall(text)
        if len(text) > LONGEST_SEGMENT and max(map(len, found)) > LONGEST_SEGMENT:
            raise DataError(
                f"has {LONGEST_SEGMENT:,} characters without a space or a line end, where "
                "sub-words could end; use --data.tokenizer ByteTokenizer"
            )
        # The last one may go on in the next chunk.
        rest = found.pop() if found else ""
        yield found, rest
    if rest:
        yield [rest], ""


def even_sample(texts: Iterable[str], most: int) -> list[str]:
    """Every text, or, if they have more than `most` characters, every n-th of them."""
    kept: list[str] = []
    size, every = 0, 1
    for number, text in enumerate(texts):
        if number % every == 0:
            kept.append(text)
            size += len(text)
            while size > most and len(kept) > 1:
                kept, every = kept[::2], 2 * every
                size = sum(map(len, kept))
    return kept


# -- the library


def library() -> ModuleType:
    """The library; MissingPackageError if it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise MissingPackageError(
            "BPETokenizer needs the package tokenizers: pip install 'makemoe[bpe]'"
        ) from None
    return tokenizers


def learned(texts: Sequence[str], size: int, end_of_text: str | None) -> str:
    """The vocabulary of texts, as the text of a tokenizer.json; it depends on nothing else.

    Raises:
        DataError: if the texts have fewer tokens than `size`.
    """
    tokenizers = library()
    words = tokenizers.pre_tokenizers
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = words.Sequence(
        [
            words.Split(tokenizers.Regex(PATTERN), "isolated"),
            words.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=words.ByteLevel.alphabet(),
        special_tokens=[] if end_of_text is None else [end_of_text],
        show_progress=False,
    )
    with one_thread():
        model.train_from_iterator(
            tqdm(texts, "learning sub-words", delay=BAR_DELAY_S, leave=False, disable=None), trainer
        )
    found = model.get_vocab_size()
    if found < size:
        raise DataError(
            f"vocab_size {size} is more than the {found} tokens that the text has (sequences that "
            f"occur twice): lower --data.tokenizer.vocab_size to {found}, or pass a longer text"
        )
    text: str = model.to_str()
    return text


def built(vocabulary: Vocabulary) -> "tokenizers.Tokenizer":
    """The library's tokenizer for a vocabulary; special tokens in a text are ordinary characters.

    Raises:
        UsageError: for what the library refuses, such as an invalid pattern.
    """
    kind = library().Tokenizer
    try:
        tokenizer: tokenizers.Tokenizer = kind.from_str(vocabulary.checked)
    except BaseException as error:
        if is_failure(error):
            reason = " ".join(str(error).split())
            raise UsageError(f"vocabulary cannot be used: {reason}") from None
        raise
    tokenizer.encode_special_tokens = True
    for content, id in vocabulary.added.items():
        if tokenizer.token_to_id(content) != id:
            raise UsageError(f"vocabulary has no ids just before that of {content!r:.40}")
    return tokenizer


def is_failure(error: BaseException) -> bool:
    """Whether the library failed: a panic in Rust is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the library from starting threads, unless the user has set its variable.

    They would outlive the call, and a process that forks later, as for `num_workers`, would be
    warned on standard error. For what is learned from, several threads are hardly faster.
    """
    if PARALLELISM in os.environ:
        yield
        return
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        del os.environ[PARALLELISM]
