"""Texts as arrays of code points, and sums over ids."""

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_IDS = 1 << 20
"""Ids that are counted at a time."""


def distinct_characters(chunks: Iterable[str]) -> str:
    """The characters of a text, sorted by code point."""
    seen = np.zeros(sys.maxunicode + 1, dtype=np.bool_)
    seen_bytes = b""
    for chunk in chunks:
        if (latin := latin_1(chunk)) is not None:
            seen_bytes += bytes(set(latin.translate(None, seen_bytes)))
        elif not seen.take(codes := code_points(chunk)).all():  # reading is faster than writing
            seen[codes] = True
    seen[list(seen_bytes)] = True
    return text_of(np.flatnonzero(seen))


def latin_1(text: str) -> bytes | None:
    """One byte per character if all code points are below 256: bytes are translated fast."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return None


def code_points(text: str) -> NDArray[np.uint32]:
    """Code points of `text`, shape (characters,); lone surrogates are kept."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def text_of(codes: NDArray[np.integer[Any]]) -> str:
    """The inverse of `code_points`."""
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def id_dtype(vocab_size: int) -> type[np.integer[Any]]:
    """The smallest type that holds the ids."""
    if vocab_size <= 1 << 8:
        return np.uint8
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


def total(of_each_V: NDArray[np.int64], ids: NDArray[np.integer[Any]]) -> int:
    """The sum of a number per id over all ids; they may be more than fit into memory."""
    parts = (ids[begin : begin + BLOCK_IDS] for begin in range(0, len(ids), BLOCK_IDS))
    return sum(int(of_each_V[part].sum()) for part in parts)
