"""A corpus as token ids: a small one in memory, a large one in a file that is mapped into it.

$XDG_CACHE_HOME/makemoe/tokens/TEXT-STATE-TOKENIZER.json  what a tokenizer learned from a text
                               TEXT-STATE-TOKENIZER.npy   its ids, from a tokenizer that has learned

TEXT stands for the text's path, STATE for its size and times, so that a text that has changed is
read anew, TOKENIZER for the tokenizer's class, its source and arguments. Each file is whole, or
not there, and may be deleted at any time.
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

LARGE_BYTES = 8 << 20  # texts of this size and more are not held in memory
MOST_LEARNED_BYTES = 64 << 20  # of what a tokenizer learned
SAMPLED_IDS = 1 << 16  # of those in the cache, looked at before they are used
SETTLE_BYTES = 16 << 20  # of ids, written to the disk at a time


def token_ids(corpus: str, tokenizer: Tokenizer, option: str = "--data.corpus") -> Ids:
    """Ids of `corpus`, shape (tokens,); a tokenizer without a vocabulary learns it here.

    Those of a large file are a read-only memory map, made by one process while others wait, and
    made again when the file has changed. Where they cannot be written they stay in memory, which
    one line on standard error tells. Raises DataError, which begins with `option`, for a text that
    cannot be had or encoded, or that changes meanwhile.
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
                f"makemoe: the tokens of {corpus!r} stay in memory: cannot keep them in "
                f"{error.filename or 'the cache folder'}: {error.strerror or error}",
                file=sys.stderr,
            )
            return _in_memory(tokenizer, lambda: read_chunks(corpus))


def _is_large(path: str) -> bool:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # reading it will tell
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size >= LARGE_BYTES


def _in_memory(tokenizer: Tokenizer, read: Callable[[], Iterable[str]]) -> Ids:
    if not tokenizer.is_fitted:
        tokenizer.fit_chunks(read())
    return np.concatenate(list(tokenizer.encode_chunks(read())))


def _mapped(path: str, tokenizer: Tokenizer) -> Ids:
    """Ids of the text at `path`, from the cache; OSError if they cannot be put there."""
    entry = _Entry(path)
    # Before the lock: a read-only cache that holds the ids is good enough.
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
        raise DataError(f"{type(tokenizer).__name__} makes ids that are not below its vocab_size")
    return ids


class _Entry:
    """What the cache holds on one text in its present state."""

    def __init__(self, path: str) -> None:
        try:
            self.folder = cache_folder() / "tokens"
        except DataError as error:
            raise OSError("there is no home folder; set XDG_CACHE_HOME") from error
        self.path = os.path.abspath(path)
        self.text = _digest(self.path)
        self.state = self._look()

    def recall(self, tokenizer: Tokenizer) -> Ids | None:
        """The ids, if they are there, and with them what the tokenizer learned.

        None also for files that were damaged, or are not ours; OSError for what cannot be opened.
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
        except Exception:  # of any kind: what is in the files is anyone's
            return None

    def _learned(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What a tokenizer learned from the text; ValueError if it is not whole."""
        held = json.loads(read_whole(self._file(tokenizer, ".json"), MOST_LEARNED_BYTES))
        if held["digest"] != _digest(held["init_args"]):
            raise ValueError("damaged")
        learned: dict[str, Any] = held["init_args"]
        return learned

    def learn(self, tokenizer: Tokenizer) -> None:
        """Fit the tokenizer, and keep what it learned under what it was before."""
        path = self._file(tokenizer, ".json")
        with replacing(path) as file:
            tokenizer.fit_chunks(read_chunks(self.path))
            learned = tokenizer.init_args()
            file.write(json.dumps({"digest": _digest(learned), "init_args": learned}).encode())
            self._check_unchanged()

    def encode(self, tokenizer: Tokenizer) -> None:
        """Write the ids, a chunk at a time."""
        with replacing(self._file(tokenizer, ".npy")) as file:
            _write_array(file, tokenizer.encode_chunks(read_chunks(self.path)))
            self._check_unchanged()

    def discard_others(self) -> None:
        """Delete what is held on earlier states of the text, and what a killed process left."""
        remove_partial(self.folder, of=self.text)
        for file in self.folder.glob(f"{self.text}-*"):
            if not file.name.startswith(f"{self.text}-{self.state}-"):
                file.unlink(missing_ok=True)

    def _file(self, tokenizer: Tokenizer, suffix: str) -> Path:
        described = _digest([tokenizer.spec(), *map(_source, tokenizer.sources())])
        return self.folder / f"{self.text}-{self.state}-{described}{suffix}"

    def _look(self) -> str:
        status = os.stat(self.path)
        # The change time as well: copying and unpacking tools set the other back.
        return _digest([status.st_size, status.st_mtime_ns, status.st_ctime_ns])

    def _check_unchanged(self) -> None:
        if self._look() != self.state:
            raise DataError("changed while it was read; start again when it is complete")


def _could_be(ids: Ids, vocab_size: int) -> bool:
    """Whether an array, as far as a sample tells, holds ids below `vocab_size`."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        return False
    sampled = ids[:: -(-len(ids) // SAMPLED_IDS)]
    return bool(sampled.min() >= 0 and sampled.max() < vocab_size)


def _write_array(file: BinaryIO, parts: Iterable[Ids]) -> None:
    """Write the concatenation of `parts` as an .npy file without ever holding it."""
    length = unsettled = 0
    header: dict[str, Any] = {"fortran_order": False, "shape": (0,)}
    for part in parts:
        if not length:
            header["descr"] = part.dtype.str
            np.lib.format.write_array_header_1_0(file, header)
        file.write(part.data)
        length += len(part)
        unsettled += part.nbytes
        if unsettled >= SETTLE_BYTES:
            _settle(file)
            unsettled = 0
    file.seek(0)  # NumPy leaves room for the length to grow
    np.lib.format.write_array_header_1_0(file, header | {"shape": (length,)})


def _settle(file: BinaryIO) -> None:
    """Move what was written from memory to the disk.

    Left to itself it fills the page cache, which counts as ours in a container, and in a virtual
    machine makes writing several times slower than the disk: each fresh page is asked of the host.
    """
    if sys.platform == "linux":
        file.flush()
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _digest(value: Any) -> str:
    """A name for a plain value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _source(cls: type) -> str:
    """The code of a class and what surrounds it, as far as it can be had."""
    try:
        return Path(inspect.getfile(cls)).read_text(encoding="utf-8")
    except (OSError, TypeError):
        return ""
