"""The documents of a corpus, read one after another.

A document is a .txt file, or a line of a .jsonl file. A corpus of one .txt file is no collection of
documents but one text: it is divided anywhere, and nothing is added to it.
"""

import hashlib
import io
import json
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

from tqdm import tqdm

from makemoe.data.compressed import Stream, opened, suffixes
from makemoe.data.corpus import empty_text, opened_text
from makemoe.data.lines import split_lines, text_in
from makemoe.data.reading import (
    BLOCK_BYTES,
    MARK,
    Distinct,
    blocks,
    decoded,
    naming,
    progress,
    reading,
    without_mark,
)
from makemoe.data.sources import is_lines, sources
from makemoe.data.split import digest_of
from makemoe.files import STANDARD_INPUT

HELD_BYTES = 1 << 20
"""Maximum size of a .txt file that is read once, and not again for each purpose."""

TEXT_KEY = "text"
"""The key of the text in a line of a .jsonl file, by default."""


FORMAT = 1
"""Raised when documents are read or split in another way, so that cached ids are not used."""


class Position(NamedTuple):
    """Where reading goes on.

    Attributes:
        file: index of the file.
        offset: bytes of its decompressed content before this point, where a character begins.
        line: lines before this point.
    """

    file: int = 0
    offset: int = 0
    line: int = 0


BEGIN = Position()


class Document(ABC):
    """A document, which is read when it is needed.

    Attributes:
        name: its file, unless the user has named it, and its line in it, for messages.
        position: what `chunks` reads next.
        may_stop: whether reading may stop there and go on another time.
        end: where the next document begins.
    """

    name: str
    position: Position
    end: Position
    may_stop: bool

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether it has no text, and is one of several."""

    @abstractmethod
    def digest(self) -> bytes:
        """A hash of its text."""

    @abstractmethod
    def chunks(self, with_newline: bool) -> Iterator[str]:
        """Its text, from `position` on, which moves along with each chunk.

        Args:
            with_newline: whether to end it with a newline, unless it ends with one.
        """

    def before(self, rest: str) -> Position:
        """The position before the last characters that were read."""
        return self.position._replace(offset=self.position.offset - len(rest.encode()))

    @abstractmethod
    def whole(self) -> "Document":
        """The same document from its beginning."""


class Corpus:
    """The documents that `--data.corpus` names.

    Args:
        name: `sample`, `tinyshakespeare`, `-`, a file, a folder, or a pattern.
        text_key: the key of the text in a line of a .jsonl file.

    Attributes:
        is_one_text: whether it is one text and no collection of documents.

    Raises:
        DataError: if there is no file.
    """

    def __init__(self, name: str, text_key: str = TEXT_KEY) -> None:
        self.name, self.text_key = name, text_key
        self.folder, self.files = sources(name)
        self.is_one_text = len(self.files) == 1 and not is_lines(self.files[0])

    def path(self, file: int) -> str:
        """The path of a file."""
        return os.path.join(self.folder, self.files[file])

    @property
    def is_standard_input(self) -> bool:
        """Whether it is standard input, which has no file."""
        return self.name == STANDARD_INPUT

    @property
    def is_compressed(self) -> bool:
        """Whether a file is compressed, so that the length of its text is not known."""
        return any(suffixes(file)[1] for file in self.files)

    @property
    def has_lines(self) -> bool:
        """Whether a file has a document on each line."""
        return any(map(is_lines, self.files))

    @property
    def identity(self) -> Any:
        """What tells it from other corpora, whatever its files hold; a plain value."""
        if self.is_one_text:
            return os.path.abspath(self.path(0))
        return [os.path.abspath(os.path.expanduser(self.name)), self.text_key, FORMAT]

    def state(self) -> str:
        """A hash of the state of all files, which changes if one does.

        Raises DataError for a file that is missing.
        """
        state = hashlib.sha256()
        for file, name in enumerate(self.files):
            with reading(self._shown(file)):
                status = os.stat(self.path(file))
            # The change time too, because tools that copy or unpack set the modification time back.
            seen = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            named = [] if self.is_one_text else [os.fsencode(name).hex()]
            state.update(json.dumps([*named, *seen]).encode())
        return state.hexdigest()[:16]

    def sizes(self) -> list[int]:
        """The sizes of the files in bytes; 0 for what cannot be read, as reading it tells."""
        return [_size(self.path(file)) for file in range(len(self.files))]

    def documents(self, what: str, begin: Position = BEGIN) -> Iterator[Document]:
        """Its documents from a position on, also empty ones; a progress bar shows `what`."""
        shown = os.path.basename(self.name.rstrip("/"))
        sizes = self.sizes()
        with progress(f"{what} {shown}", sum(sizes), sum(sizes[: begin.file])) as bar:
            for file in range(begin.file, len(self.files)):
                at = begin if file == begin.file else Position(file)
                if is_lines(self.files[file]):
                    yield from self._lines(at, bar)
                else:
                    yield TextFile(self, at, bar, self._shown(file))

    def chunks(self, what: str) -> Iterator[str]:
        """The text of all documents, each on lines of its own; DataError if there is none."""
        distinct = Distinct()
        for document in self.documents(what):
            if not document.is_empty:
                yield from distinct.through(document.chunks(not self.is_one_text))
        distinct.check(self.without_text)

    @property
    def without_text(self) -> str:
        """What is wrong with it if there is none."""
        if self.is_one_text:
            return empty_text(self.name)
        return "all of its documents are empty; pass files with text"

    @contextmanager
    def opened(self, file: int) -> Iterator[Stream]:
        """The content of a file; errors name the file, unless the user has."""
        if self.is_standard_input or (self.is_one_text and not self.folder):
            with opened_text(self.name) as stream:
                yield stream
        else:
            with reading(self._shown(file)), opened(self.path(file)) as stream:
                yield stream

    def _shown(self, file: int) -> str:
        return self.files[file] if self.folder else ""

    def _lines(self, begin: Position, bar: tqdm) -> Iterator[Document]:
        """The documents of a .jsonl file; blank lines are left out."""
        prefix = f"{self.files[begin.file]}, line " if self.folder else "line "
        with self.opened(begin.file) as stream:
            stream.skip(begin.offset)
            bar.update(stream.consumed())
            for line in split_lines(blocks(stream, bar), begin.offset, begin.line):
                if not line.is_blank:
                    end = Position(begin.file, line.end, line.number)
                    yield Line(f"{prefix}{line.number}", text_in(line, self.text_key), end)


class Line(Document):
    """A document on a line of a .jsonl file."""

    may_stop = False

    def __init__(self, name: str, text: str, end: Position) -> None:
        self.name, self.text = name, text
        self.position = self.end = end

    @property
    def is_empty(self) -> bool:
        return not self.text

    def digest(self) -> bytes:
        return digest_of(self.text.encode()).digest()

    def chunks(self, with_newline: bool) -> Iterator[str]:
        text = self.text + "\n" if with_newline and self.text[-1:] != "\n" else self.text
        if len(text) <= BLOCK_BYTES:
            yield text
        else:
            for begin in range(0, len(text), BLOCK_BYTES):
                yield text[begin : begin + BLOCK_BYTES]

    def whole(self) -> "Line":
        return self


class TextFile(Document):
    """A document that is a file.

    Args:
        corpus: the corpus that it belongs to.
        begin: which file, and where to begin.
        bar: shows how much was read.
        name: for messages.
    """

    may_stop = True

    def __init__(self, corpus: Corpus, begin: Position, bar: tqdm, name: str) -> None:
        self.corpus, self.bar, self.name = corpus, bar, name
        self.position, self.end = begin, Position(begin.file + 1)

    @cached_property
    def held(self) -> bytes | None:
        """Its content if it is small, and one of several documents."""
        if self.corpus.is_one_text or self.position.offset:
            return None
        content = bytearray()
        with self.corpus.opened(self.position.file) as stream:
            for block in blocks(stream):
                content += block
                if len(content) > HELD_BYTES:
                    return None
            self.bar.update(stream.consumed())
        return bytes(content)

    @property
    def is_empty(self) -> bool:
        return self.held in (b"", MARK)

    def digest(self) -> bytes:
        if self.held is not None:
            return digest_of(self.held.removeprefix(MARK)).digest()
        with self.corpus.opened(self.position.file) as stream:
            content, first = blocks(stream), b""
            while len(first) < len(MARK) and (block := next(content, b"")):
                first += block
            digest = digest_of(first.removeprefix(MARK))
            for block in content:
                digest.update(block)
        return digest.digest()

    def chunks(self, with_newline: bool) -> Iterator[str]:
        ends_line = False
        with self._content() as stream:
            if offset := self.position.offset:
                stream.skip(offset - 1)
                self.bar.update(stream.consumed())
                ends_line = stream.read(1) == b"\n"
            chunks = decoded(blocks(stream, self.bar if self.held is None else None), offset)
            for text, end in chunks if offset else without_mark(chunks):
                self.position = self.position._replace(offset=end)
                ends_line = text.endswith("\n") if text else ends_line
                yield text
        if with_newline and not ends_line:
            self.may_stop = False  # the file does not have this character
            yield "\n"

    def whole(self) -> "TextFile":
        return TextFile(self.corpus, Position(self.position.file), self.bar, self.name)

    @contextmanager
    def _content(self) -> Iterator[Stream]:
        if self.held is None:
            with self.corpus.opened(self.position.file) as stream:
                yield stream
        else:
            with naming(self.name):
                yield Stream(io.BytesIO(self.held), len(self.held))


def _size(path: str) -> int:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
