"""Token ids of a corpus: in memory if it is small, in a memory-mapped file if it is large.

$XDG_CACHE_HOME/makemoe/tokens/TEXT-STATE-TOKENIZER.json  what the tokenizer learned from the text
                               TEXT-STATE-TOKENIZER.npy   its ids, encoded by the fitted tokenizer

TEXT is a hash of the text's path, STATE of its size and times, so that a changed text is read
again, and TOKENIZER of the tokenizer's class, source and arguments. Each file is complete or
missing, and may be deleted at any time.
"""

import hashlib
import inspect
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from makemoe.data.corpus import blaming, cache_folder, file_of, read_chunks
from makemoe.data.tokenizer import Ids, Tokenizer
from makemoe.errors import DataError
from makemoe.files import STANDARD_INPUT, open_regular, read_whole, remove_partial, replacing

LARGE_BYTES = 8 << 20  # texts of at least this size are not kept in memory
MOST_LEARNED_BYTES = 64 << 20  # maximum size of what a tokenizer learned
SAMPLED_BLOCKS, SAMPLED_IDS = 16, 1 << 12  # how many cached ids are checked before use: 16 x 4096
SETTLE_BYTES = 16 << 20  # bytes of ids between two flushes to disk


def token_ids(corpus: str, tokenizer: Tokenizer, option: str = "--data.corpus") -> Ids:
    """Ids of `corpus`, shape (tokens,); a tokenizer without a vocabulary is fitted here.

    For a large file they are a read-only memory map, created by one process while others wait, and
    created again if the file changes. If they cannot be written, they stay in memory, and one line
    on standard error says so. Raises DataError, which starts with `option`, for a text that cannot
    be read or encoded, or that changes while it is read.
    """
    with blaming(option, corpus):
        path = file_of(corpus)
        if corpus == STANDARD_INPUT or not _is_large(path):
            chunks = list(read_chunks(corpus))
            return _in_memory(tokenizer, lambda: chunks)
        try:
            return _mapped(path, tokenizer)
        except OSError as error:
            print(
                f"makemoe: the tokens of {corpus!r} stay in memory: cannot store them in "
                f"{error.filename or 'the cache folder'}: {error.strerror or error}",
                file=sys.stderr,
            )
            return _in_memory(tokenizer, lambda: read_chunks(corpus))


def _is_large(path: str) -> bool:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # reading the file reports the error
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size >= LARGE_BYTES


def _in_memory(tokenizer: Tokenizer, read: Callable[[], Iterable[str]]) -> Ids:
    if not tokenizer.is_fitted:
        tokenizer.fit_chunks(read())
    return np.concatenate(list(tokenizer.encode_chunks(read())))


def _mapped(path: str, tokenizer: Tokenizer) -> Ids:
    """Ids of the text at `path`, from the cache; OSError if they cannot be stored there."""
    entry = _Entry(path)
    # Checked before locking, so that a read-only cache works too.
    ids = entry.recall(tokenizer)
    if ids is None:
        entry.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.folder / f"{entry.text}.lock"):
            ids = entry.recall(tokenizer)
            if ids is None:
                entry.discard_others()
                if not tokenizer.is_fitted:
                    entry.learn(tokenizer)
                entry.encode(tokenizer)
                ids = entry.recall(tokenizer)
    if ids is None:
        raise DataError(f"{type(tokenizer).__name__} produces ids outside [0, vocab_size)")
    return ids


class _Entry:
    """The cached files of one text in its current state."""

    def __init__(self, path: str) -> None:
        try:
            self.folder = cache_folder() / "tokens"
        except DataError as error:
            raise OSError("there is no home folder; set XDG_CACHE_HOME") from error
        self.path = os.path.abspath(path)
        self.text = _digest(self.path)
        self.state = self._look()

    def recall(self, tokenizer: Tokenizer) -> Ids | None:
        """The ids, if they are cached; an unfitted tokenizer gets what it learned from the text.

        None also for files that are damaged or not from makemoe; OSError if one cannot be opened.
        """
        try:
            if not tokenizer.is_fitted:
                tokenizer.restore(self._learned(tokenizer))
            path = self._file(tokenizer, ".npy")
            with open_regular(path):  # anything else could block
                pass
            ids: Ids = np.lib.format.open_memmap(path, mode="r")
            return ids if _could_be(ids, tokenizer.vocab_size) else None
        except FileNotFoundError:
            return None
        except OSError:
            raise
        except Exception:  # of any kind: the files may contain anything
            return None

    def _learned(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What a tokenizer learned from the text; ValueError if the file is damaged."""
        held = json.loads(read_whole(self._file(tokenizer, ".json"), MOST_LEARNED_BYTES))
        if held["digest"] != _digest(held["init_args"]):
            raise ValueError("damaged")
        learned: dict[str, Any] = held["init_args"]
        return learned

    def learn(self, tokenizer: Tokenizer) -> None:
        """Fit the tokenizer and store the result, under the name of the unfitted tokenizer."""
        path = self._file(tokenizer, ".json")
        with replacing(path) as file:
            tokenizer.fit_chunks(read_chunks(self.path))
            learned = tokenizer.init_args()
            file.write(json.dumps({"digest": _digest(learned), "init_args": learned}).encode())
            self._check_unchanged()

    def encode(self, tokenizer: Tokenizer) -> None:
        """Encode the text and write the ids, one chunk at a time."""
        with replacing(self._file(tokenizer, ".npy")) as file:
            _write_array(file, tokenizer.encode_chunks(read_chunks(self.path)))
            self._check_unchanged()

    def discard_others(self) -> None:
        """Delete files of earlier states of the text, and partial files of killed processes."""
        remove_partial(self.folder, of=self.text)
        for file in self.folder.glob(f"{self.text}-*"):
            if not file.name.startswith(f"{self.text}-{self.state}-"):
                file.unlink(missing_ok=True)

    def _file(self, tokenizer: Tokenizer, suffix: str) -> Path:
        described = _digest([tokenizer.spec(), *map(_source, tokenizer.sources())])
        return self.folder / f"{self.text}-{self.state}-{described}{suffix}"

    def _look(self) -> str:
        status = os.stat(self.path)
        # The change time too, because tools that copy or unpack set the modification time back.
        return _digest([status.st_size, status.st_mtime_ns, status.st_ctime_ns])

    def _check_unchanged(self) -> None:
        if self._look() != self.state:
            raise DataError("changed while it was being read; start again when it is complete")


def _could_be(ids: Ids, vocab_size: int) -> bool:
    """Whether an array contains valid ids below `vocab_size`, judged by a few blocks of it.

    As many single ids, spread out, would read the whole file from disk and map it into memory.
    """
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        return False
    apart = max(SAMPLED_IDS, len(ids) // SAMPLED_BLOCKS)
    blocks = (ids[begin : begin + SAMPLED_IDS] for begin in range(0, len(ids), apart))
    return all(block.min() >= 0 and block.max() < vocab_size for block in blocks)


def _write_array(file: BinaryIO, parts: Iterable[Ids]) -> None:
    """Write the concatenation of `parts` as an .npy file without holding it in memory."""
    length = unsettled = 0
    header: dict[str, Any] = {"fortran_order": False, "shape": (0,)}
    for part in parts:
        if not len(part):  # of a chunk whose tokens are not complete yet
            continue
        if not length:
            header["descr"] = part.dtype.str
            np.lib.format.write_array_header_1_0(file, header)
        assert part.dtype.str == header["descr"], "a tokenizer's ids have one dtype"
        file.write(np.ascontiguousarray(part).data)
        length += len(part)
        unsettled += part.nbytes
        if unsettled >= SETTLE_BYTES:
            _settle(file)
            unsettled = 0
    file.seek(0)  # NumPy leaves room for the length to grow
    np.lib.format.write_array_header_1_0(file, header | {"shape": (length,)})


def _settle(file: BinaryIO) -> None:
    """Flush written data from memory to disk.

    Otherwise it fills the page cache, which counts as memory of the container. In a virtual machine
    it also makes writing several times slower, because the host must supply each new page.
    """
    if sys.platform == "linux":
        file.flush()
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _digest(value: Any) -> str:
    """A short hash of a plain value, for file names."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _source(cls: type) -> str:
    """The source file of a class, or an empty string if it cannot be read."""
    try:
        return Path(inspect.getfile(cls)).read_text(encoding="utf-8")
    except (OSError, TypeError):
        return ""
