"""Turns the documents of a corpus into ids, each on its side of a split."""

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import numpy as np

from makemoe.data.documents import BEGIN, Corpus, Position
from makemoe.data.reading import Distinct, naming
from makemoe.data.split import FEW, TRAINING, Split
from makemoe.data.tokenizer import Ids, Tokenizer, UnknownCharacter
from makemoe.errors import DataError

MOST_HELD_BYTES = 1 << 30
"""Maximum size of ids that are kept in memory."""


class State(TypedDict):
    """How far the encoding of a corpus is.

    Attributes:
        position: what is encoded next.
        documents: how many were encoded, on each side.
        empty: how many were left out because they are empty.
        first_empty: the name of the first of them.
        sides: the side of each file, if that was found out before; else empty.
    """

    position: Sequence[int]
    documents: list[int]
    empty: int
    first_empty: str
    sides: list[int]


class Sections(Protocol):
    """Where ids go: `makemoe.data.growing.GrowingArray`, or memory."""

    state: Any
    dtype: str

    @property
    def is_due(self) -> bool: ...
    def append(self, section: int, ids: Ids) -> None: ...
    def commit(self, state: Any) -> None: ...


class HeldSections:
    """Keeps ids in memory; DataError for more than MOST_HELD_BYTES."""

    state, is_due = None, False

    def __init__(self, sections: int) -> None:
        # An array for each document would take more than the ids of a short one.
        self.parts = [bytearray() for _ in range(sections)]
        self.dtype = ""

    @property
    def lengths(self) -> list[int]:
        """The number of ids in each section."""
        return [len(part) // np.dtype(self.dtype or "u1").itemsize for part in self.parts]

    def append(self, section: int, ids: Ids) -> None:
        self.dtype = ids.dtype.str
        self.parts[section] += ids.tobytes()
        if sum(map(len, self.parts)) > MOST_HELD_BYTES:
            raise too_many("are not stored, and")

    def commit(self, state: Any) -> None:
        """Nothing: memory does not outlive its process."""

    def ids(self) -> Ids:
        """The sections one after another."""
        return np.concatenate([np.frombuffer(part, self.dtype or "u1") for part in self.parts])


def encode(corpus: Corpus, tokenizer: Tokenizer, split: Split | None, sections: Sections) -> State:
    """Append the ids of all documents to their sections, and go on where `sections` stands.

    Each document is encoded by itself. It is followed by the tokenizer's end-of-text token; if
    there is none, it ends with a newline, which is added if need be and if the tokenizer has one.

    Args:
        corpus: the documents; if it is one text, nothing is added to it.
        tokenizer: fitted.
        split: the side of a document is the section it goes to; None: there is one section.
        sections: where ids go.

    Raises:
        DataError: for a text that cannot be read or encoded, and for a split with an empty side.
    """
    is_resumed = sections.state is not None
    if not is_resumed:
        sort_few(corpus, split)
    state: State = sections.state or State(
        position=BEGIN,
        documents=[0, 0],
        empty=0,
        first_empty="",
        sides=split.sides if split else [],
    )
    end = None if corpus.is_one_text else tokenizer.end_of_text
    # Of a text without newlines, the model may not know them: then nothing is between documents.
    with_newline = end is None and not corpus.is_one_text and tokenizer.knows("\n")
    distinct = Distinct()
    for document in corpus.documents("encoding", Position(*state["position"])):
        if document.is_empty:
            state["empty"] += 1
            state["first_empty"] = state["first_empty"] or document.name
            continue
        if state["sides"]:
            section = state["sides"][document.position.file]
        else:
            section = split.side(document.digest()) if split else TRAINING
        try:
            chunks = distinct.through(document.chunks(with_newline))
            for ids, rest in tokenizer.encode_parts(chunks):
                sections.append(section, ids)
                if rest is not None and document.may_stop and sections.is_due:
                    sections.commit(state | {"position": document.before(rest)})
        except UnknownCharacter as error:
            with naming(document.name):
                # The offset that an error names counts from where encoding began.
                for _ in tokenizer.encode_parts(document.whole().chunks(with_newline)):
                    pass
                raise error
        if end is not None and sections.dtype:  # all documents so far may have no tokens
            sections.append(section, np.array([end], sections.dtype))
        state["documents"][section] += 1
        state["position"] = document.end
        if sections.is_due:
            sections.commit(state)
    if not is_resumed:
        distinct.check(corpus.without_text)
    if split:
        split.check(state["documents"])
    state["position"] = Position(len(corpus.files))
    sections.commit(state)
    return state


def too_many(problem: str) -> DataError:
    """The error about ids that fit nowhere."""
    return DataError(
        f"its tokens {problem} take more than the {MOST_HELD_BYTES >> 30} GiB of memory that they "
        "may; make room in the cache folder and start again, which goes on from here, or set "
        "XDG_CACHE_HOME to a folder with room"
    )


def sort_few(corpus: Corpus, split: Split | None) -> None:
    """Find out the sides of all files, if these are few texts; DataError if a side is empty.

    It may well be that none of a few is held out, and better to know before any long work.
    """
    if split is None or split.sides or corpus.has_lines or len(corpus.files) > FEW:
        return
    counts = [0, 0]
    for document in corpus.documents("sorting"):
        side = TRAINING if document.is_empty else split.side(document.digest())
        split.sides.append(side)
        counts[side] += not document.is_empty
    if any(counts):
        split.check(counts)
