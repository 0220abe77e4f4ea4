"""Refuses texts with characters that a tokenizer does not know, or skips these characters."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Self

from makemoe import process
from makemoe.data.documents import TEXT_KEY
from makemoe.data.token_cache import Tokens, tokens_of
from makemoe.data.tokenizer import Ids, Tokenizer, UnknownCharacter
from makemoe.data.windows import EvaluatedText, validation_begins
from makemoe.errors import DataError

Unknown = Literal["error", "skip"]
"""What to do with characters that a tokenizer does not know."""

FEW = 5
"""Maximum number of skipped characters that are named."""


class KnownText(NamedTuple):
    """A corpus as tokens.

    Attributes:
        corpus: the user's name for it.
        tokens: those of everything that was not skipped.
        skipped: number of skipped characters.
    """

    corpus: str
    tokens: Tokens
    skipped: int

    @property
    def ids(self) -> Ids:
        """The tokens, shape (tokens,), those of the training split first."""
        return self.tokens.ids

    @property
    def split(self) -> int:
        """Index of the first token of the validation split."""
        split = self.tokens.split
        return validation_begins(len(self.ids)) if split is None else split

    def whole(self) -> EvaluatedText:
        """The whole text."""
        left_out = f" without its {characters(self.skipped, 'unknown ')}" if self.skipped else ""
        return EvaluatedText(f"{self.corpus}{left_out}", self.ids)

    def validation_split(self) -> EvaluatedText:
        """The last tenth of a text, or the documents that are held out."""
        share = "last 10 %"
        if self.tokens.split is not None:
            share = f"{self.tokens.documents[1]:,} of {sum(self.tokens.documents):,} documents"
        return EvaluatedText(
            f"the validation split ({share}) of {self.whole().name}", self.ids[self.split :]
        )


def known_text(
    corpus: str,
    tokenizer: Tokenizer,
    option: str,
    unknown: Unknown = "error",
    text_key: str = TEXT_KEY,
    seed: int | None = None,
) -> KnownText:
    """`tokens_of`, without unknown characters if `unknown` is `skip`.

    One line on standard error says how many were skipped, another how many documents are empty.
    Raises DataError as `tokens_of` does.
    """
    skipped = 0
    if unknown == "skip" and tokenizer.is_fitted:
        skipping = Skipping(tokenizer)
        tokens = tokens_of(corpus, skipping, option, text_key, seed)
        tell_skipped(f"{option} {corpus!r}", skipping)
        skipped = skipping.count
    else:
        with offering_to_skip():
            tokens = tokens_of(corpus, tokenizer, option, text_key, seed)
    if tokens.empty:
        many = f"an empty document: {tokens.first_empty}"
        if tokens.empty > 1:
            many = f"{tokens.empty:,} empty documents, the first of them {tokens.first_empty}"
        tell(f"{option} {corpus!r}: left out {many}")
    return KnownText(corpus, tokens, skipped)


def encode_known(text: str, tokenizer: Tokenizer, option: str, unknown: Unknown) -> str:
    """Like `known_text`, for a short text; returns the part that the tokenizer knows."""
    try:
        if unknown == "skip":
            skipping = Skipping(tokenizer).fit(text)
            tell_skipped(option, skipping)
            text = skipping.without_unknown(text)
        with offering_to_skip():
            if not len(tokenizer.encode(text)):
                raise DataError(f"{type(tokenizer).__name__} makes no token of it; pass another")
    except DataError as error:
        raise DataError(f"{option}: {error}") from error
    return text


class Skipping(Tokenizer):
    """Wraps a tokenizer, for one text, and skips the characters that it does not know.

    They are learned from the text: `skipped` counts each of them; None: not fitted yet.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: dict[str, int] | None = None) -> None:
        self.tokenizer, self.skipped = tokenizer, skipped

    @property
    def is_fitted(self) -> bool:
        return self.skipped is not None

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def end_of_text(self) -> int | None:
        return self.tokenizer.end_of_text

    @property
    def count(self) -> int:
        """Number of skipped characters."""
        return sum((self.skipped or {}).values())

    def fit(self, text: str) -> Self:
        return self.fit_chunks([text])

    def fit_chunks(self, chunks: Iterable[str]) -> Self:
        """Count the unknown characters; raise DataError if there is no other character."""
        known: set[str] = set()
        skipped: Counter[str] = Counter()
        for chunk in chunks:
            for character in set(chunk) - known:
                if character in skipped or not self.tokenizer.knows(character):
                    skipped[character] += chunk.count(character)
                else:
                    known.add(character)
        if not known:
            raise DataError("the model knows none of its characters; pass another text")
        self.skipped = dict(sorted(skipped.items()))
        return self

    def without_unknown(self, text: str) -> str:
        """A text without its unknown characters."""
        assert self.skipped is not None, "fit it first"
        if not self.skipped:
            return text
        return re.sub(f"[{re.escape(''.join(self.skipped))}]+", "", text)

    def encode(self, text: str) -> Ids:
        return self.tokenizer.encode(self.without_unknown(text))

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        return (ids for ids, _ in self.encode_parts(chunks))

    def encode_parts(self, chunks: Iterable[str]) -> Iterator[tuple[Ids, str | None]]:
        known = filter(None, map(self.without_unknown, chunks))
        for ids, rest in self.tokenizer.encode_parts(known):
            # Unknown characters may have stood in a rest.
            yield ids, None if rest and self.skipped else rest

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return self.tokenizer.decode(ids)

    def characters(self, ids: Ids) -> int:
        return self.tokenizer.characters(ids)

    def utf8_bytes(self, ids: Ids) -> int:
        return self.tokenizer.utf8_bytes(ids)

    def init_args(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.spec(), "skipped": self.skipped}

    def restore(self, init_args: dict[str, Any]) -> None:
        """Restore the counts; the wrapped tokenizer stays the same."""
        self.skipped = dict(init_args["skipped"])

    def sources(self) -> list[type]:
        return [*super().sources(), *self.tokenizer.sources()]


@contextmanager
def offering_to_skip() -> Iterator[None]:
    """Add the option that skips unknown characters to the error about one."""
    try:
        yield
    except DataError as error:
        if not isinstance(error, UnknownCharacter) and not isinstance(
            error.__cause__, UnknownCharacter
        ):
            raise
        raise UnknownCharacter(f"{error}, or pass --data.unknown skip") from error


def tell_skipped(what: str, skipping: Skipping) -> None:
    """Say how many characters are skipped."""
    assert skipping.skipped is not None
    if skipping.skipped:
        few = ", ".join(map(repr, list(skipping.skipped)[:FEW]))
        more = len(skipping.skipped) - FEW
        kinds = few if more <= 0 else f"{few} and {more:,} others"
        count = characters(skipping.count)
        tell(f"{what}: skipped {count} that the model does not know: {kinds}")


def tell(what: str) -> None:
    """Print a line on standard error, from the first process only."""
    if process.is_first_here():
        print(f"makemoe: {what}", file=sys.stderr)


def characters(count: int, kind: str = "") -> str:
    """A number of characters, as text."""
    return f"{count:,} {kind}character{'s' if count != 1 else ''}"
