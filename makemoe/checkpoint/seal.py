"""The checksum of a checkpoint, and the checks of an archive before it is read.

The checksum is the SHA-256 of the ZIP archive as `torch.save` made it. It is stored as the
archive's comment, so that other programs can still read the file. The checksums that every ZIP
archive has do not cover names, sizes and padding, and torch does not verify them.
"""

import hashlib
import pickletools
import struct
import zipfile
from collections.abc import Sequence
from typing import BinaryIO

PREFIX = b"sha256:"
SEAL_BYTES = len(PREFIX) + 64
LENGTH = struct.pack("<H", SEAL_BYTES)
CHANGED = "it has changed since it was written: its checksum does not match"

ENCRYPTED = 1
"""Flag of a record of an archive."""

MOST_STRUCTURE_BYTES = 16 << 20
"""Limit for the pickled values without tensors; unpickled, they take many times that."""


CALLED = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    # What they make is refused later, by name.
    "torch._utils _rebuild_meta_tensor_no_storage",
    "__builtin__ complex",
}
"""What a file may call with any arguments. Torch allows more, some of which copies a value that the
file has once, for each few bytes in which it is named again."""

ORDERED, NOTHING, MARK, AGAIN, LONG = "collections OrderedDict", "()", "(", "=", "long"
MOST_DIMENSIONS = 64
"""Of a tensor of torch."""

RUNS_CODE = "it would run code while loading; makemoe checkpoints never do"


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
    check_records(records, after_end)


def check_records(records: Sequence[zipfile.ZipInfo], after_end: int) -> None:
    """Raise Unsealed for records that makemoe does not write."""
    if after_end not in (0, SEAL_BYTES):
        raise Unsealed("bytes follow its end")
    for record in records:
        if record.flag_bits & ENCRYPTED:
            raise Unsealed("it is not a checkpoint")
        # A compressed record of a few bytes could expand to fill all memory.
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise Unsealed("it is compressed; makemoe checkpoints never are")
        if is_structure(record) and record.file_size > MOST_STRUCTURE_BYTES:
            raise Unsealed("it contains more values than any model")


def is_structure(record: zipfile.ZipInfo) -> bool:
    """Whether a record holds the values without the tensors."""
    return record.filename.lower().endswith("data.pkl")


def check_values(file: BinaryIO) -> None:
    """Check what an archive, which `check_archive` has seen, would do when it is read.

    Raises:
        Unsealed: if it would do more than a checkpoint does.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for record in filter(is_structure, archive.infolist()):
                check_structure(archive.read(record))
    except (zipfile.BadZipFile, EOFError) as error:
        raise Unsealed(CHANGED) from error


def check_structure(pickled: bytes) -> None:
    """Raise Unsealed for pickled values that call what no checkpoint calls.

    It follows functions, the empty tuple, long tuples, and what is named again, through the stack
    of the pickled program.
    """
    stack: list[str] = []
    memo: dict[int, str] = {}
    try:
        for code, argument, _ in pickletools.genops(pickled):
            name = code.name
            if name == "GLOBAL":
                stack.append(str(argument))
            elif name == "EMPTY_TUPLE":
                stack.append(NOTHING)
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[int(str(argument))] or AGAIN)
                if stack[-1] == LONG:  # as the shape of many tensors, each with a copy
                    raise Unsealed(RUNS_CODE)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[int(str(argument))] = stack[-1]
            elif name == "MARK":
                stack.append(MARK)
            else:
                if name in ("REDUCE", "NEWOBJ") and not may_call(stack[-2], stack[-1], name):
                    raise Unsealed(RUNS_CODE)
                if name == "BUILD" and stack[-1] == AGAIN:  # attributes are copied
                    raise Unsealed(RUNS_CODE)
                apply(code, stack)
    except (ValueError, LookupError, struct.error) as error:
        raise Unsealed("it is not a checkpoint, or it is damaged") from error


def may_call(function: str, arguments: str, how: str) -> bool:
    """Whether a checkpoint calls a function like this."""
    is_plain = function in CALLED or (function == ORDERED and arguments == NOTHING)
    return is_plain and how == "REDUCE"


def apply(code: pickletools.OpcodeInfo, stack: list[str]) -> None:
    """Take from the stack what an instruction takes, and put something there for each result."""
    items = 0
    for kind in reversed(code.stack_before):
        if kind is pickletools.stackslice:
            while stack[-1] != MARK:
                stack.pop()
                items += 1
        else:
            stack.pop()
    is_long = code.name == "TUPLE" and items > MOST_DIMENSIONS
    stack += [LONG if is_long else ""] * len(code.stack_after)


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
