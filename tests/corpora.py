"""Corpora of documents for tests, and what is in them by the plainest means."""

import gzip
import json
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import zstandard

from makemoe.data.tokenizer import ByteTokenizer, Ids

PACK = {"": bytes, ".gz": partial(gzip.compress, mtime=0), ".zst": zstandard.compress}

TEXTS = [f"Document {n}:\n" + "Grüße, Bürger! 漢字 \U0001f600.\r\n" * (n % 5) for n in range(40)]
"""Some end with a newline, some do not."""


class Ending(ByteTokenizer):
    """Bytes, and one that UTF-8 does not have as the end of a document."""

    @property
    def end_of_text(self) -> int:
        return 255

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return super().decode([id for id in ids if id != 255])


def is_held_out(text: str, seed: int) -> bool:
    """Whether a document is for validation: about one in ten are."""
    digest = blake2b(text.encode(), digest_size=16).digest()
    drawn = blake2b(digest, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(drawn, "little") < 2**64 // 10


def expected(texts: Sequence[str], seed: int | None) -> tuple[str, str]:
    """The text of both splits for a tokenizer without an end of text."""
    sides = ["", ""]
    for text in texts:
        if text:
            whole = text if text.endswith("\n") else f"{text}\n"
            sides[seed is not None and is_held_out(text, seed)] += whole
    return sides[0], sides[1]


def joined(texts: Sequence[str], seed: int | None) -> tuple[str, str]:
    """The text of both splits for a tokenizer with an end of text, which is decoded to nothing."""
    sides = ["", ""]
    for text in texts:
        sides[seed is not None and is_held_out(text, seed)] += text
    return sides[0], sides[1]


def expected_bytes(texts: Sequence[str], seed: int | None) -> tuple[Ids, Ids]:
    """The ids of both splits for `Ending`."""
    sides: list[list[int]] = [[], []]
    for text in filter(None, texts):
        sides[seed is not None and is_held_out(text, seed)] += [*text.encode(), 255]
    return np.array(sides[0]), np.array(sides[1])


def write_file(path: Path, texts: Sequence[str], key: str = "text") -> None:
    """Write a file as its name says: the only text, or one on each line, maybe compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".jsonl" in path.suffixes:
        lines = [json.dumps({key: text, "id": n}) + "\n" for n, text in enumerate(texts)]
        content = "".join(lines).encode()
    else:
        (text,) = texts
        content = text.encode()
    path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""](content))


def write_folder(folder: Path, texts: Sequence[str] = TEXTS) -> Path:
    """A folder with a file for each text, whose names have the order of the texts."""
    for number, text in enumerate(texts):
        write_file(folder / f"{number // 10:03}" / f"{number:06}.txt", [text])
    return folder
