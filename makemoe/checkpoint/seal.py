"""The checksum of a checkpoint, and the checks of an archive before it is read.

The checksum is the SHA-256 of the ZIP archive as `torch.save` made it. It is stored as the
archive's comment, so that other programs can still read the file. The checksums that every ZIP
archive has do not cover names, sizes and padding, and torch does not verify them.
"""

import hashlib
import struct
import zipfile
from typing import BinaryIO

PREFIX = b"sha256:"
SEAL_BYTES = len(PREFIX) + 64
LENGTH = struct.pack("<H", SEAL_BYTES)
CHANGED = "it has changed since it was written: its checksum does not match"

MOST_STRUCTURE_BYTES = 16 << 20
"""Limit for the pickled values without tensors; unpickled, they take many times that."""


class Unsealed(Exception):
    """Why a file is not an unchanged checkpoint archive."""


class Sealing:
    """A file for `torch.save` to write to, which computes the checksum of what is written.

    Args:
        file: a new, empty file, open for writing bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write the bytes and add them to the checksum."""
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()

    def seal(self) -> str:
        """Append the checksum to the complete archive, and return it."""
        checksum = self.hash.hexdigest()
        self.file.seek(-2, 2)
        self.file.write(LENGTH + PREFIX + checksum.encode())
        return checksum


def check_archive(file: BinaryIO) -> None:
    """Check that a file is an uncompressed archive from the first byte to the last.

    Raises:
        Unsealed: if it is not.
    """
    if file.read(2) != b"PK":
        raise Unsealed("it is not a checkpoint")
    try:
        with zipfile.ZipFile(file) as archive:
            records, after_end = archive.infolist(), len(archive.comment)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, EOFError) as error:
        raise Unsealed("it is truncated, or bytes follow its end") from error
    except NotImplementedError as error:
        raise Unsealed("it is not a checkpoint") from error
    if after_end not in (0, SEAL_BYTES):
        raise Unsealed("bytes follow its end")
    for record in records:
        # A compressed record of a few bytes could expand to fill all memory.
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise Unsealed("it is compressed; makemoe checkpoints never are")
        if record.filename.lower().endswith("data.pkl") and record.file_size > MOST_STRUCTURE_BYTES:
            raise Unsealed("it contains more values than any model")


def read_seal(file: BinaryIO) -> str | None:
    """The checksum of an archive, verified; None if it has none.

    Raises:
        Unsealed: if the checksum does not match the archive.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - SEAL_BYTES - 2))
    length, seal = file.read(2), file.read()
    if not seal.startswith(PREFIX):
        return None
    if length != LENGTH:
        raise Unsealed(CHANGED)
    hashed, left = hashlib.sha256(), size - SEAL_BYTES - 2
    file.seek(0)
    while left > 0 and (block := file.read(min(left, 1 << 20))):
        hashed.update(block)
        left -= len(block)
    hashed.update(b"\0\0")  # the length of the comment before the seal was added
    checksum = hashed.hexdigest()
    if checksum.encode() != seal.removeprefix(PREFIX):
        raise Unsealed(CHANGED)
    return checksum
