"""A tokenizer whose tokens are parts of characters, whole ones, and several at once."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np

from makemoe.data.tokenizer import Ids, Tokenizer


class BytePairs(Tokenizer):
    """The 256 bytes, and the most frequent pairs of them; the first pair from the left counts.

    `pairs` are 256 * first + second; None: not fitted yet.
    """

    def __init__(self, pairs: list[int] | None = None) -> None:
        self.pairs = pairs
        if pairs is not None:
            held = [pair.to_bytes(2, "big") for pair in pairs]
            self.tokens = [bytes([byte]) for byte in range(256)] + held
            self.ids = {token: id for id, token in enumerate(self.tokens)}

    @property
    def is_fitted(self) -> bool:
        return self.pairs is not None

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def fit(self, text: str) -> Self:
        if self.pairs is None:
            counts = Counter(256 * a + b for a, b in pairwise(text.encode()))
            self.__init__([pair for pair, _ in counts.most_common(60)])  # type: ignore[misc]
        return self

    def encode(self, text: str) -> Ids:
        return np.concatenate([np.empty(0, np.uint16), *self.encode_chunks([text])])

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        rest = b""  # a byte that may be the first of a pair
        for chunk in chunks:
            ids, rest = self.encode_bytes(rest + chunk.encode())
            yield np.array(ids, np.uint16)
        yield np.array(list(rest), np.uint16)

    def encode_bytes(self, data: bytes) -> tuple[list[int], bytes]:
        ids, at = [], 0
        while at + 1 < len(data):
            size = 2 if data[at : at + 2] in self.ids else 1
            ids.append(self.ids[data[at : at + size]])
            at += size
        return ids, data[at:]

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return b"".join(self.tokens[id] for id in ids).decode(errors="replace")

    def init_args(self) -> dict[str, Any]:
        return {"pairs": self.pairs}
