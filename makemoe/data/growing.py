"""A file of ids that is written in parts, and goes on after its process was killed.

Ids are added to the end of one of several sections, and the sections follow each other in the file.
Until it is complete, it is in these files beside it:

.NAME.0.partial, .NAME.1.partial ...   the sections
.NAME.journal.partial                  how much of them counts, and what the writer wants to know
"""

import io
import json
import os
import sys
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from makemoe.data.tokenizer import Ids
from makemoe.errors import DataError
from makemoe.files import PARTIAL, read_whole, replacing

SETTLE_BYTES = 16 << 20  # bytes of ids between two flushes to disk
COMMIT_BYTES = 64 << 20  # bytes of ids between two entries of the journal
COPY_BYTES = 1 << 20
MOST_JOURNAL_BYTES = 1 << 20
JOURNAL = f".journal{PARTIAL}"


class GrowingArray:
    """Writes the file `path`; a context, which keeps the sections if it can go on another time.

    Args:
        path: an .npy file.
        sections: how many sections it has.

    Attributes:
        state: what the writer has left in the journal, plain values; None at the beginning.
    """

    def __init__(self, path: Path, sections: int) -> None:
        self.path = path
        stem = path.parent / f".{path.stem}"
        self.parts = [Path(f"{stem}.{section}{PARTIAL}") for section in range(sections)]
        self.journal = Path(f"{stem}{JOURNAL}")
        self.files: list[IO[bytes]] = []
        self.lengths = [0] * sections
        self.dtype = ""
        self.state: dict[str, Any] | None = None
        self.unsettled = [0] * sections
        self.uncommitted = 0

    def __enter__(self) -> Self:
        self._recall()
        mode = "wb" if self.state is None else "r+b"
        try:
            with ExitStack() as opened:
                for part, end in zip(self.parts, self._ends(), strict=True):
                    file = opened.enter_context(open(part, mode, buffering=COPY_BYTES))
                    file.truncate(end)
                    file.seek(end)
                    self.files.append(file)
                opened.pop_all()
        except OSError as error:
            raise self._named(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for file in self.files:
            with suppress(OSError):  # what is not written will be written another time
                file.close()
        if kind is None or issubclass(kind, DataError) or self.state is None:
            for path in (self.journal, *self.parts):
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            self._named(error)

    def append(self, section: int, ids: Ids) -> None:
        """Add ids, shape (tokens,), to the end of a section; all have one dtype."""
        if not len(ids):  # of a chunk whose tokens are not complete yet
            return
        self.dtype = self.dtype or ids.dtype.str
        assert ids.dtype.str == self.dtype, "a tokenizer's ids have one dtype"
        self.files[section].write(np.ascontiguousarray(ids).data)
        self.lengths[section] += len(ids)
        self.uncommitted += ids.nbytes
        self.unsettled[section] += ids.nbytes
        if self.unsettled[section] >= SETTLE_BYTES:
            _settle(self.files[section])
            self.unsettled[section] = 0

    @property
    def is_due(self) -> bool:
        """Whether enough was added for an entry of the journal."""
        return self.uncommitted >= COMMIT_BYTES

    def commit(self, state: dict[str, Any]) -> None:
        """Keep what was added so far, also if the process is killed now.

        Args:
            state: plain values that tell how to go on.
        """
        for file in self.files:
            _settle(file)
        entry = {"dtype": self.dtype, "lengths": self.lengths, "state": state}
        with replacing(self.journal) as file:
            file.write(json.dumps(entry | {"digest": _digest(entry)}).encode())
        self.state, self.uncommitted = state, 0

    def finish(self) -> None:
        """Bring the sections together; the file gets its name in `publish`."""
        whole, *others = self.files
        for part, file in zip(self.parts[1:], others, strict=True):
            file.flush()
            with part.open("rb") as section:
                while block := section.read(COPY_BYTES):
                    whole.write(block)
            _settle(whole)
        whole.seek(0)
        whole.write(_header(self.dtype, sum(self.lengths)))
        whole.flush()
        os.fsync(whole.fileno())

    def publish(self) -> None:
        """Give the file its name."""
        os.replace(self.parts[0], self.path)

    def _ends(self) -> list[int]:
        """Where the sections end, in bytes; the first one has a header."""
        size = np.dtype(self.dtype).itemsize if self.dtype else 0
        ends = [length * size for length in self.lengths]
        return [ends[0] + HEADER_BYTES, *ends[1:]]

    def _recall(self) -> None:
        """Read the journal, if it and the sections are whole."""
        with suppress(Exception):  # of any kind: the files may contain anything
            entry = json.loads(read_whole(self.journal, MOST_JOURNAL_BYTES))
            digest = entry.pop("digest")
            self.dtype, self.lengths = entry["dtype"], list(entry["lengths"])
            sizes = [part.stat().st_size for part in self.parts]
            if digest == _digest(entry) and all(map(int.__ge__, sizes, self._ends())):
                self.state = entry["state"]
                return
        self.dtype, self.lengths = "", [0] * len(self.parts)

    def _named(self, error: OSError) -> OSError:
        """The error with the name that the user knows."""
        error.filename, error.filename2 = str(self.path), None
        return error


def is_kept(partial: Path) -> bool:
    """Whether a partial file belongs to an array that can go on."""
    stem = partial.name.removesuffix(PARTIAL).rpartition(".")[0]
    return partial.with_name(f"{stem}{JOURNAL}").exists()


def _header(dtype: str, length: int) -> bytes:
    """The header of an .npy file, as long for every length: NumPy leaves room for it to grow."""
    header = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, fields)
    content = header.getvalue()
    assert len(content) == HEADER_BYTES, "every header is as long"
    return content


HEADER_BYTES = 128


def _settle(file: IO[bytes]) -> None:
    """Flush written data from memory to disk.

    Otherwise it fills the page cache, which counts as memory of the container. In a virtual machine
    it also makes writing several times slower, because the host must supply each new page.
    """
    file.flush()
    if sys.platform == "linux":
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    else:
        os.fsync(file.fileno())


def _digest(value: Any) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()
