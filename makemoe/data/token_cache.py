"""Token ids of a corpus: in memory if it is small, in a memory-mapped file if it is large.

In $XDG_CACHE_HOME/makemoe/tokens:

TEXT-STATE-TOKENIZER.json          what the tokenizer learned from the corpus
TEXT-STATE-TOKENIZER.npy           its ids, encoded by the fitted tokenizer
TEXT-STATE-TOKENIZER-SEED.npy      the ids of split documents: training documents, then the others
TEXT-STATE-TOKENIZER-SEED.json     where the others begin, and how many documents there are
TEXT-STATE-TOKENIZER-whole.*       the same for documents that are not split

TEXT is a hash of the path of the file, folder or pattern, STATE of the names, sizes and times of
the files, so that a changed text is read again, TOKENIZER of the tokenizer's class, source and
arguments, and SEED that of the split. Each file is complete or missing, and may be deleted at any
time. What a killed process has encoded stays in files whose names begin with a dot, as
`makemoe/data/growing.py` says, and the next process goes on from there.
"""

import hashlib
import inspect
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from makemoe import process
from makemoe.data.corpus import blaming, cache_folder
from makemoe.data.documents import TEXT_KEY, Corpus
from makemoe.data.encoding import MOST_HELD_BYTES, HeldSections, State, encode, sort_few, too_many
from makemoe.data.growing import GrowingArray, is_kept
from makemoe.data.split import Split
from makemoe.data.tokenizer import Ids, Tokenizer
from makemoe.errors import DataError
from makemoe.files import PARTIAL, open_regular, read_whole, replacing

LARGE_BYTES = 8 << 20  # texts of at least this size are not kept in memory
MOST_LEARNED_BYTES = 64 << 20  # maximum size of what a tokenizer learned
SAMPLED_BLOCKS, SAMPLED_IDS = 16, 1 << 12  # how many cached ids are checked before use: 16 x 4096
PATIENCE_S = 2.0  # a message appears if waiting for another process takes longer, in seconds
STALLED_S = 3600.0  # another process that has written nothing for so long is not waited for


class Tokens(NamedTuple):
    """The ids of a corpus.

    Attributes:
        ids: shape (tokens,); if documents are split, the training documents come first.
        split: index of the first id of the other documents; None if there are no documents.
        documents: how many there are on each side.
        empty: how many were left out because they are empty.
        first_empty: the name of the first of them.
    """

    ids: Ids
    split: int | None = None
    documents: tuple[int, int] = (0, 0)
    empty: int = 0
    first_empty: str = ""


def token_ids(corpus: str, tokenizer: Tokenizer, option: str = "--data.corpus") -> Ids:
    """The ids of `tokens_of`, without a split."""
    return tokens_of(corpus, tokenizer, option).ids


def tokens_of(
    corpus: str,
    tokenizer: Tokenizer,
    option: str = "--data.corpus",
    text_key: str = TEXT_KEY,
    seed: int | None = None,
) -> Tokens:
    """The ids of `corpus`; a tokenizer without a vocabulary is fitted here.

    For a large corpus they are a read-only memory map, created by one process while others wait,
    and created again if a file changes. If they cannot be written, they stay in memory, and one
    line on standard error says so.

    Args:
        corpus: `sample`, `tinyshakespeare`, `-`, a file, a folder, or a pattern.
        tokenizer: encodes it.
        option: how the user named it, for messages.
        text_key: the key of the text in a line of a .jsonl file.
        seed: of the split of documents; None: they are not split. One text is not split here.

    Raises:
        DataError: for a corpus that cannot be read, split or encoded, or that changes meanwhile;
            it starts with `option`.
    """
    with blaming(option, corpus):
        found = Corpus(corpus, text_key)
        split = None if seed is None or found.is_one_text else Split(seed)
        if not _is_large(found):
            return _in_memory(found, tokenizer, split)
        try:
            return _mapped(found, tokenizer, split)
        except OSError as error:
            where, why = error.filename or "the cache folder", error.strerror or error
            if sum(found.sizes()) > MOST_HELD_BYTES:
                raise too_many(f"cannot be stored in {where}: {why}, and") from error
            if process.is_first_here():
                print(
                    f"makemoe: the tokens of {corpus!r} stay in memory: cannot store them in "
                    f"{where}: {why}",
                    file=sys.stderr,
                )
            return _in_memory(found, tokenizer, split)


def _is_large(corpus: Corpus) -> bool:
    """Whether to keep the ids in a file; a compressed text may be of any length."""
    size = sum(corpus.sizes())
    if corpus.is_standard_input or not size:  # reading a file reports what is wrong with it
        return False
    return corpus.is_compressed or size >= LARGE_BYTES


def _in_memory(corpus: Corpus, tokenizer: Tokenizer, split: Split | None) -> Tokens:
    if not tokenizer.is_fitted:
        sort_few(corpus, split)
        tokenizer.fit_chunks(corpus.chunks("reading"))
    held = HeldSections(2 if split else 1)
    state = encode(corpus, tokenizer, split, held)
    return _tokens(held.ids(), corpus, _record(held.lengths, state))


def _mapped(corpus: Corpus, tokenizer: Tokenizer, split: Split | None) -> Tokens:
    """The ids of a corpus, from the cache; OSError if they cannot be stored there."""
    entry = _Entry(corpus, split)
    # Checked before locking, so that a read-only cache works too.
    tokens = entry.recall(tokenizer)
    if tokens is None:
        entry.folder.mkdir(parents=True, exist_ok=True)
        with _locked(entry, corpus.name):
            tokens = entry.recall(tokenizer)
            if tokens is None:
                entry.discard_others()
                if not tokenizer.is_fitted:
                    entry.learn(tokenizer)
                entry.encode(tokenizer)
                tokens = entry.recall(tokenizer)
    if tokens is None:
        raise DataError(f"{type(tokenizer).__name__} produces ids outside [0, vocab_size)")
    return tokens


@contextmanager
def _locked(entry: "_Entry", corpus: str) -> Iterator[None]:
    """Hold the lock of an entry; one line on standard error says so if another process has it.

    Raises:
        DataError: if that process stops writing.
    """
    path = entry.folder / f"{entry.text}.lock"
    lock, since, is_told = FileLock(path), time.time(), False
    while True:
        try:
            lock.acquire(timeout=PATIENCE_S)
            break
        except Timeout:
            if process.is_first_here() and not is_told:
                print(
                    f"makemoe: waiting for another process that reads {corpus!r} into the cache",
                    file=sys.stderr,
                )
            is_told = True
        if time.time() - max(since, entry.last_written()) > STALLED_S:
            raise DataError(
                f"another process has locked {path} and written nothing for {STALLED_S:.0f} s: "
                "end it, or set XDG_CACHE_HOME to another folder"
            )
    try:
        yield
    finally:
        lock.release()


class _Entry:
    """The cached files of one corpus in its current state, for one split."""

    def __init__(self, corpus: Corpus, split: Split | None) -> None:
        try:
            self.folder = cache_folder() / "tokens"
        except DataError as error:
            raise OSError("there is no home folder; set XDG_CACHE_HOME") from error
        self.corpus, self.split = corpus, split
        self.text = _digest(corpus.identity)
        self.state = corpus.state()
        self.part = "" if corpus.is_one_text else f"-{split.seed if split else 'whole'}"

    def recall(self, tokenizer: Tokenizer) -> Tokens | None:
        """The ids, if they are cached; an unfitted tokenizer gets what it learned from the corpus.

        None also for files that are damaged or not from makemoe; OSError if one cannot be opened.
        """
        try:
            if not tokenizer.is_fitted:
                tokenizer.restore(self._held(self._file(tokenizer, ".json"), "init_args"))
            path = self._file(tokenizer, f"{self.part}.npy")
            with open_regular(path):  # anything else could block
                pass
            ids: Ids = np.lib.format.open_memmap(path, mode="r")
            if not _could_be(ids, tokenizer.vocab_size):
                return None
            record = None
            if not self.corpus.is_one_text:
                record = self._held(path.with_suffix(".json"), "record")
            return _tokens(ids, self.corpus, record)
        except FileNotFoundError:
            return None
        except OSError:
            raise
        except Exception:  # of any kind: the files may contain anything
            return None

    def learn(self, tokenizer: Tokenizer) -> None:
        """Fit the tokenizer and store the result, under the name of the unfitted tokenizer."""
        path = self._file(tokenizer, ".json")
        sort_few(self.corpus, self.split)
        tokenizer.fit_chunks(self.corpus.chunks("reading"))
        self._hold(path, "init_args", tokenizer.init_args())

    def encode(self, tokenizer: Tokenizer) -> None:
        """Encode the documents and write the ids; goes on if a process has begun with them."""
        path = self._file(tokenizer, f"{self.part}.npy")
        with GrowingArray(path, 2 if self.split else 1) as array:
            state = encode(self.corpus, tokenizer, self.split, array)
            array.finish()
            if self.corpus.is_one_text:
                self._check_unchanged()
            else:
                record = _record(array.lengths, state)
                self._hold(path.with_suffix(".json"), "record", record)
            array.publish()

    def discard_others(self) -> None:
        """Delete files of earlier states of the corpus, and partial files that are of no use."""
        for file in self.folder.glob(f"*{self.text}-*"):
            is_old = f"{self.text}-{self.state}-" not in file.name
            if is_old or (file.name.endswith(PARTIAL) and not is_kept(file)):
                file.unlink(missing_ok=True)

    def last_written(self) -> float:
        """When a file of the corpus was last written, in seconds since 1970; 0: none is there."""
        times = [0.0]
        for file in self.folder.glob(f"*{self.text}-*"):
            with suppress(FileNotFoundError):
                times.append(file.stat().st_mtime)
        return max(times)

    def _file(self, tokenizer: Tokenizer, suffix: str) -> Path:
        described = _digest([tokenizer.spec(), *map(_source, tokenizer.sources())])
        return self.folder / f"{self.text}-{self.state}-{described}{suffix}"

    def _hold(self, path: Path, name: str, value: Any) -> None:
        """Write a plain value; DataError if the corpus has changed meanwhile."""
        with replacing(path) as file:
            file.write(json.dumps({"digest": _digest(value), name: value}).encode())
            self._check_unchanged()

    def _held(self, path: Path, name: str) -> Any:
        """Read it; an exception of any kind if the file is damaged."""
        held = json.loads(read_whole(path, MOST_LEARNED_BYTES))
        if held["digest"] != _digest(held[name]):
            raise ValueError("damaged")
        return held[name]

    def _check_unchanged(self) -> None:
        if Corpus(self.corpus.name, self.corpus.text_key).state() != self.state:
            raise DataError("changed while it was being read; start again when it is complete")


def _record(lengths: Sequence[int], state: State) -> dict[str, Any]:
    """What is kept of documents beside their ids, as plain values."""
    kept = ("documents", "empty", "first_empty")
    return {"lengths": list(lengths)} | {name: state[name] for name in kept}  # type: ignore[literal-required]


def _tokens(ids: Ids, corpus: Corpus, record: Any) -> Tokens:
    """The ids with what was recorded of them; an exception of any kind if that does not fit."""
    if corpus.is_one_text:
        return Tokens(ids)
    lengths, documents = record["lengths"], record["documents"]
    if sum(lengths) != len(ids):
        raise ValueError("of another array")
    split = lengths[0] if len(lengths) > 1 else None
    training, held_out = documents
    return Tokens(ids, split, (training, held_out), record["empty"], record["first_empty"])


def _could_be(ids: Ids, vocab_size: int) -> bool:
    """Whether an array contains valid ids below `vocab_size`, judged by a few blocks of it.

    As many single ids, spread out, would read the whole file from disk and map it into memory.
    """
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        return False
    apart = max(SAMPLED_IDS, len(ids) // SAMPLED_BLOCKS)
    blocks = (ids[begin : begin + SAMPLED_IDS] for begin in range(0, len(ids), apart))
    return all(block.min() >= 0 and block.max() < vocab_size for block in blocks)


def _digest(value: Any) -> str:
    """A short hash of a plain value, for file names."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@cache
def _source(cls: type) -> str:
    """The source file of a class, or an empty string; as it was first, which is what runs here."""
    try:
        return Path(inspect.getfile(cls)).read_text(encoding="utf-8")
    except (OSError, TypeError):
        return ""
