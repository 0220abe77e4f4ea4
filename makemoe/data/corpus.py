"""Reads texts: the bundled sample, tiny Shakespeare, a user's file or standard input."""

import hashlib
import http.client
import io
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from makemoe.data.compressed import Stream, opened
from makemoe.data.reading import (
    BLOCK_BYTES,
    Distinct,
    blocks,
    decoded,
    progress,
    unreadable,
    without_mark,
)
from makemoe.errors import DataError
from makemoe.files import STANDARD_INPUT, open_regular, read_standard_input, replacing

SILENCE_S = 10.0  # timeout for a connection or for the next byte, in seconds
DEADLINE_S = 120.0  # timeout of a whole download, in seconds: a slow server is never silent
CHUNK_BYTES = 1 << 16

MOST_STANDARD_INPUT = 1 << 30  # bytes, because the text is kept in memory

NAMES = ("sample", "tinyshakespeare")


@dataclass(frozen=True)
class RemoteText:
    """A text on a server: its URL, size in bytes, SHA-256 (hex), and file name in the cache."""

    url: str
    size: int
    sha256: str
    filename: str


TINY_SHAKESPEARE = RemoteText(
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    filename="tinyshakespeare.txt",
)


def load_text(corpus: str, option: str = "--data.corpus") -> str:
    """Text of `corpus`: `sample`, `tinyshakespeare` (downloaded once), or the path of a UTF-8 file.

    `-` is standard input, which is read once: it is the same text each time. A leading byte order
    mark is removed; newlines are kept. Write `./sample` for a file with one of the three names.
    Raises DataError, which starts with `option`, for a text that cannot be read or has fewer than
    two distinct characters.
    """
    with blaming(option, corpus):
        return "".join(read_chunks(corpus))


def read_chunks(corpus: str) -> Iterator[str]:
    """The same text in chunks, using little memory; a DataError does not name the option."""
    distinct = Distinct()
    what = f"reading {os.path.basename(corpus)}"
    with opened_text(corpus) as stream, progress(what, stream.size) as bar:
        chunks = without_mark(decoded(blocks(stream, bar)))
        yield from distinct.through(chunk.text for chunk in chunks)
    distinct.check(empty_text(corpus))


def empty_text(corpus: str) -> str:
    """What is wrong with a text without characters."""
    if corpus == STANDARD_INPUT:
        return "standard input is empty; pipe a text into it"
    return "the file is empty; pass a file with text"


@contextmanager
def blaming(option: str, corpus: str) -> Iterator[None]:
    """Prefix a DataError with the option and its value."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{option} {corpus!r}: {error}") from error


def file_of(corpus: str) -> str:
    """Path of the file for `corpus`, downloaded if needed; a user's file may not exist."""
    if corpus == "sample":
        return str(Path(__file__).with_name("sample.txt"))
    if corpus == "tinyshakespeare":
        return str(fetch(TINY_SHAKESPEARE, cache_folder()))
    return os.path.expanduser(corpus)


def cache_folder() -> Path:
    """Folder for downloaded texts and tokens: $XDG_CACHE_HOME/makemoe, else ~/.cache/makemoe."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification: a relative path is ignored
        return Path(base) / "makemoe"
    try:
        return Path.home() / ".cache" / "makemoe"
    except RuntimeError as error:
        raise DataError(
            "no home folder to cache a downloaded text in; set XDG_CACHE_HOME to a writable "
            "folder, or pass a file: --data.corpus FILE"
        ) from error


def fetch(remote: RemoteText, cache_dir: Path) -> Path:
    """Path of `remote` in `cache_dir`, downloaded by one process unless an intact copy is there.

    Raises DataError if the text cannot be downloaded completely or the folder cannot be written.
    """
    path = cache_dir / remote.filename
    try:
        # Checked before locking, so that a read-only cache works too.
        if _is_intact(path, remote):
            return path
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=DEADLINE_S + SILENCE_S):
            if not _is_intact(path, remote):
                data = _download(remote)
                with replacing(path) as file:
                    file.write(data)
    except Timeout as error:
        raise _unfetched(remote, f"another process still holds {path}.lock") from error
    except OSError as error:
        raise DataError(
            f"cannot use the cache folder {str(cache_dir)!r}: {error.strerror or error}; "
            "set XDG_CACHE_HOME to a writable folder, or pass a file: --data.corpus FILE"
        ) from error
    return path


@contextmanager
def opened_text(corpus: str) -> Iterator[Stream]:
    """The bytes of `corpus`, which may be compressed; standard input may be opened repeatedly.

    An error of the system, also one while the stream is read, becomes a DataError.
    """
    if corpus == STANDARD_INPUT:
        content = _standard_input()
        yield Stream(io.BytesIO(content), len(content))
        return
    try:
        with opened(file_of(corpus)) as stream:
            yield stream
    except FileNotFoundError as error:
        close = get_close_matches(corpus.lower(), NAMES, n=1, cutoff=0.7)
        mend = f"did you mean {close[0]!r}?" if close else "check the path, or try 'sample'"
        raise DataError(f"no such file; {mend}") from error
    except IsADirectoryError as error:
        raise DataError("is a folder; pass a text file") from error
    except (OSError, ValueError) as error:
        raise unreadable(error, "pass the path of a text file") from error


@cache
def _standard_input() -> bytes:
    """All of standard input, which can be read only once."""
    if any(name in os.environ for name in ("LOCAL_RANK", "RANK")):
        raise DataError("standard input cannot be shared by several processes; pass a file")
    try:
        return read_standard_input(MOST_STANDARD_INPUT)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); pass a file") from error


def _is_intact(path: Path, remote: RemoteText) -> bool:
    try:
        with open_regular(path) as file:
            digest = hashlib.sha256()
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
            return digest.hexdigest() == remote.sha256
    except FileNotFoundError:
        return False


def _download(remote: RemoteText) -> bytes:
    """Download `remote`; raise a DataError unless size and checksum are right."""
    data = bytearray()
    try:
        with (
            tqdm(
                desc=remote.filename,
                total=remote.size,
                unit="B",
                unit_scale=True,
                disable=None,  # if standard error is not a terminal
            ) as bar,
            closing(_receive(remote.url)) as chunks,
        ):
            for chunk in chunks:
                data += chunk
                bar.update(len(chunk))
                if len(data) > remote.size:
                    raise ConnectionError(f"the server sent more than {remote.size} bytes")
        if len(data) < remote.size:
            raise ConnectionError(f"the connection broke after {len(data)} of {remote.size} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a bad proxy
        raise _unfetched(remote, _reason(error)) from error
    if hashlib.sha256(data).hexdigest() != remote.sha256:
        raise _unfetched(remote, "wrong checksum (SHA-256): the download is damaged")
    return bytes(data)


def _receive(url: str) -> Generator[bytes, None, None]:
    """Yield the body at `url` as it arrives; TimeoutError once DEADLINE_S seconds have passed.

    A thread receives, because urllib's timeout is per read and does not cover the DNS lookup; only
    another thread can enforce the deadline.
    """
    arrived: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    abandoned = threading.Event()

    def receive() -> None:
        try:
            with urllib.request.urlopen(url, timeout=SILENCE_S) as response:
                while not abandoned.is_set():
                    chunk = response.read1(CHUNK_BYTES)
                    arrived.put(chunk)
                    if not chunk:
                        return
        except Exception as error:
            arrived.put(error)

    deadline = time.monotonic() + DEADLINE_S
    threading.Thread(target=receive, daemon=True).start()
    try:
        while chunk := arrived.get(timeout=max(0.0, deadline - time.monotonic())):
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk
    except queue.Empty:
        raise TimeoutError(f"not finished within {DEADLINE_S:g} seconds") from None
    finally:
        abandoned.set()


def _reason(error: Exception) -> str:
    """A short, one-line reason for a network error."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # the error is also the response
        return f"the server answered HTTP {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    words = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(words.split())


def _unfetched(remote: RemoteText, reason: str) -> DataError:
    return DataError(
        f"cannot download {remote.filename}: {reason}; download {remote.url} "
        "yourself and pass the file: --data.corpus FILE"
    )
