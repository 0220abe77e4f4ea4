"""A text that is large for the cache of token ids, and a tokenizer that counts its work."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from makemoe.data import growing, reading, token_cache
from makemoe.data.token_cache import token_ids
from makemoe.data.tokenizer import CharTokenizer, Ids

TEXT = "Grüße, Bürger! 漢字 und \U0001f600.\r\n" * 40


class Counting(CharTokenizer):
    """It counts how often it is asked to work."""

    work: list[str]

    def __init__(self, vocabulary: str | None = None) -> None:
        super().__init__(vocabulary)
        self.work = []

    def fit_chunks(self, chunks: Iterable[str]) -> "Counting":
        self.work.append("fit")
        super().fit_chunks(chunks)
        return self

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        self.work.append("encode")
        return super().encode_chunks(chunks)

    def restore(self, init_args: dict[str, Any]) -> None:
        work = self.work
        super().restore(init_args)
        self.work = work


def in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ids go from now on; every text is a large one, and is read in pieces."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "LARGE_BYTES", 1)
    monkeypatch.setattr(growing, "SETTLE_BYTES", 100)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 61)
    return tmp_path / "cache/makemoe/tokens"


def written(tmp_path: Path) -> Path:
    """The text as a file."""
    path = tmp_path / "mine.txt"
    path.write_bytes(TEXT.encode())
    return path


def expected(text: str) -> list[int]:
    id_of = {character: i for i, character in enumerate(sorted(set(text)))}
    return [id_of[character] for character in text]


def kept(cache: Path) -> list[str]:
    """The suffixes of what the cache holds."""
    return sorted(path.suffix for path in cache.glob("*") if path.suffix != ".lock")


def work(file: Path, tokenizer: Counting) -> list[str]:
    """What a tokenizer had to do for the ids of a file, which are right."""
    ids = token_ids(str(file), tokenizer)
    assert isinstance(ids, np.memmap)
    assert ids.tolist() == expected(file.read_bytes().decode())
    return tokenizer.work
