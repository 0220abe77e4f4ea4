"""Reads files that may be compressed with gzip or zstd, in bounded memory.

A few bytes may stand for gigabytes, so what is read at a time is limited after decompression.
"""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, BinaryIO

from makemoe.errors import DataError, MissingPackageError
from makemoe.files import open_regular

SKIPPED_BYTES = 1 << 20  # bytes that are read at a time to get past them
ZSTD_BYTES = 1 << 10
"""Compressed bytes that are handed to zstd at a time: at most 32 MiB of text, if hostile."""

MOST_WINDOW = 1 << 27
"""Bytes of text that zstd may refer back to; this is also the default of the command `zstd`."""


class Stream:
    """The content of a plain file, read from its beginning to its end.

    Args:
        file: the file, open and at its beginning.
        size: its size in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self, size: int) -> bytes:
        """At most `size` bytes, and none only at the end; DataError for a damaged file."""
        return self.file.read(size)

    def skip(self, count: int) -> None:
        """Go past that many bytes."""
        self.file.seek(count, 1)

    def consumed(self) -> int:
        """Bytes of the file that were read from disk."""
        return self.file.tell()


class _Compressed(Stream):
    def skip(self, count: int) -> None:
        while count > 0 and (block := self.read(min(count, SKIPPED_BYTES))):
            count -= len(block)


class _Gzip(_Compressed):
    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, size)
        self.unpacked = gzip.GzipFile(fileobj=file, mode="rb")

    def read(self, size: int) -> bytes:
        try:
            return self.unpacked.read(size)
        except EOFError as error:
            raise _cut("gzip") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise _damaged("gzip", error) from error


class _Zstd(_Compressed):
    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, size)
        try:
            import zstandard
        except ImportError as error:
            raise MissingPackageError(
                "a .zst file needs the package zstandard: pip install 'makemoe[zstd]'"
            ) from error
        self.fault: type[Exception] = zstandard.ZstdError
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW)
        self.frame: Any = None  # what is being read; None between two frames
        self.packed = self.unpacked = b""
        self.at = 0  # what was read of `unpacked`

    def read(self, size: int) -> bytes:
        while self.at == len(self.unpacked) and self._has_more():
            if self.frame is None:
                self.frame = self.decompressor.decompressobj()
            self.unpacked, self.at = b"", 0  # room for the next
            try:
                self.unpacked = self.frame.decompress(self.packed)
            except self.fault as error:
                raise _damaged("zstd", error) from error
            self.packed = b""
            if self.frame.eof:
                self.packed, self.frame = self.frame.unused_data or b"", None
        block = self.unpacked[self.at : self.at + size]
        self.at += len(block)
        return block

    def _has_more(self) -> bool:
        self.packed = self.packed or self.file.read(ZSTD_BYTES)
        if not self.packed and self.frame is not None:
            raise _cut("zstd")
        return bool(self.packed)


STREAMS: dict[str, type[Stream]] = {".gz": _Gzip, ".zst": _Zstd}
"""Suffixes of compressed files, and what reads them."""


def suffixes(name: str) -> tuple[str, str]:
    """What kind of file a name stands for, and how it is compressed: `a.TXT.gz`: .txt and .gz."""
    path = PurePath(name.lower())
    if path.suffix not in STREAMS:
        return path.suffix, ""
    return PurePath(path.stem).suffix, path.suffix


@contextmanager
def opened(path: str) -> Iterator[Stream]:
    """The decompressed content of a regular file; OSError if it cannot be opened."""
    with open_regular(path) as file:
        yield STREAMS.get(suffixes(path)[1], Stream)(file, os.fstat(file.fileno()).st_size)


def _cut(kind: str) -> DataError:
    return DataError(f"its {kind} data ends too early, so a part is missing; copy the file again")


def _damaged(kind: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"is not {kind} data, or is damaged ({reason}); try {kind} -t FILE")
