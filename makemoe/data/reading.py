"""Reads files as UTF-8 text in pieces: their decoding, their faults, and how far reading is."""

import codecs
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

from tqdm import tqdm

from makemoe.data.compressed import Stream
from makemoe.errors import DataError

BLOCK_BYTES = 1 << 16  # bytes read at a time; larger blocks are slower to process
BAR_DELAY_S = 1.0  # a progress bar appears if reading takes longer, in seconds
MARK = "\ufeff".encode()
"""The byte order mark, which a file may begin with; it is not part of the text."""


class Chunk(NamedTuple):
    """A piece of a text, and how many bytes of its file are read when it has been processed."""

    text: str
    end: int


def progress(what: str, total: int, begin: int = 0) -> tqdm:
    """A bar of bytes with the time left; it appears on a terminal if the work takes long."""
    return tqdm(
        desc=what,
        total=total,
        initial=begin,
        unit="B",
        unit_scale=True,
        delay=BAR_DELAY_S,
        leave=False,
        disable=None,  # if standard error is not a terminal
    )


def blocks(stream: Stream, bar: tqdm | None = None) -> Iterator[bytes]:
    """What is left of a file, in blocks of BLOCK_BYTES at most; a bar moves along."""
    begin = stream.consumed()
    while block := stream.read(BLOCK_BYTES):
        yield block
        if bar is not None:
            bar.update(stream.consumed() - begin)
            begin = stream.consumed()


def decoded(blocks: Iterable[bytes], begin: int = 0) -> Iterator[Chunk]:
    """Decode UTF-8: one chunk per block and one at the end; a block may end inside a character.

    Args:
        blocks: the bytes.
        begin: how many bytes of the file come before them, where a character begins.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    end = begin
    for block in chain(blocks, [b""]):
        held, _ = decoder.getstate()  # the start of an incomplete character
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise not_utf_8(error, end - len(held)) from error
        end += len(block)
        yield Chunk(text, end - len(decoder.getstate()[0]))


def without_mark(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Remove the byte order mark at the beginning of a file."""
    for first in chunks:
        yield first._replace(text=first.text.removeprefix("\ufeff"))
        if first.text:  # a block of one or two bytes does not hold the whole mark
            break
    yield from chunks


def not_utf_8(error: UnicodeDecodeError, begin: int) -> DataError:
    """The error about bytes that start at an offset of a file."""
    return DataError(
        f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {begin + error.start}; "
        "convert it: iconv -f ENCODING -t UTF-8"
    )


class Distinct:
    """Sees to it that a text has at least two distinct characters."""

    def __init__(self) -> None:
        self.characters: set[str] = set()

    def through(self, chunks: Iterable[str]) -> Iterator[str]:
        """The same chunks, without those that are empty."""
        for chunk in chunks:
            if len(self.characters) < 2:
                self.characters.update(chunk)
            if chunk:
                yield chunk

    def check(self, empty: str) -> None:
        """Raise DataError if there were fewer; `empty` tells of a text without any."""
        if not self.characters:
            raise DataError(empty)
        if len(self.characters) == 1:
            raise DataError(
                f"contains only {self.characters.pop()!r}; pass a text with at least two distinct "
                "characters"
            )


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Prefix a DataError with the name of the file or line that it is about, if there is one."""
    try:
        yield
    except DataError as error:
        if not name:
            raise
        shown = name if name.isprintable() else repr(name)
        raise type(error)(f"{shown}: {error}") from error


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn an error of the system about a file or folder into a DataError that names it."""
    with naming(name):
        try:
            yield
        except FileNotFoundError as error:
            raise DataError("no such file or folder; check the path, or the link") from error
        except (OSError, ValueError) as error:
            raise unreadable(error, "repair or remove it") from error


def unreadable(error: OSError | ValueError, mend: str) -> DataError:
    """The error about a file that the system does not read; ValueError: a NUL byte in its path."""
    if isinstance(error, PermissionError):
        return DataError("no permission to read it; try chmod u+r")
    return DataError(f"cannot be read ({getattr(error, 'strerror', None) or error}); {mend}")
