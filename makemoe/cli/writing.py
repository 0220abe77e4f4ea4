"""Writes sampled texts to standard output in order, as soon as their characters are final."""

import sys
from collections.abc import Sequence
from io import StringIO

SEPARATOR = "\n---\n"


class Output:
    """Standard output: texts with a separator between them. Each piece is flushed."""

    def __init__(self) -> None:
        self.texts, self.ends_line = 0, True
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", newline="")

    def begin_text(self) -> None:
        """Start the next text."""
        if self.texts:
            self.write(SEPARATOR)
        self.texts, self.ends_line = self.texts + 1, False

    def write(self, text: str) -> None:
        """Write a part of the text and flush it."""
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self.ends_line = text.endswith("\n")

    def close(self) -> None:
        """Write a newline if the last text does not end with one."""
        if not self.ends_line:
            self.write("\n")


class InOrder:
    """Writes streams one after another while all of them grow.

    The first unfinished stream is written as it grows; the others wait for their turn. Text that
    may be the beginning of a stop text is held back.

    Args:
        beginnings: the beginning of each stream.
        stops: a stream ends before any of these texts.
        output: where the texts are written.
    """

    def __init__(self, beginnings: Sequence[str], stops: Sequence[str], output: Output) -> None:
        self.stops, self.output = stops, output
        self.waiting = [StringIO() for _ in beginnings]  # final text of later streams
        self.doubtful = [""] * len(beginnings)
        self.ended = [False] * len(beginnings)
        self.current = 0
        for waiting, beginning in zip(self.waiting, beginnings, strict=True):
            waiting.write(beginning)
        self.begin()

    def add(self, stream: int, text: str) -> bool:
        """Append new text; return whether the stream has reached a stop text."""
        return self._grow(stream, text)

    def finish(self, stream: int, text: str) -> None:
        """End a stream with its last text, which no token adds."""
        if not self._grow(stream, text):
            self.ended[stream] = True
            self.pass_on(stream, self.doubtful[stream])
            self.advance()

    def _grow(self, stream: int, text: str) -> bool:
        new = self.doubtful[stream] + text
        found = [new.index(stop) for stop in self.stops if stop in new]
        if found:
            self.ended[stream] = True
            certain = min(found)
        else:
            certain = len(new) - self.may_begin_a_stop(new)
        self.doubtful[stream] = "" if found else new[certain:]
        self.pass_on(stream, new[:certain])
        self.advance()
        return self.ended[stream]

    def pass_on(self, stream: int, text: str) -> None:
        """Write final text, or store it until the stream's turn."""
        if stream == self.current:
            self.show(text)
        else:
            self.waiting[stream].write(text)

    def may_begin_a_stop(self, text: str) -> int:
        """Number of characters at the end of a text that may be the beginning of a stop text."""
        lengths = (
            n
            for stop in self.stops
            for n in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:n])
        )
        return max(lengths, default=0)

    def begin(self) -> None:
        """Start the current stream and write the text it already has."""
        self.output.begin_text()
        certain = self.waiting[self.current].getvalue()
        self.waiting[self.current] = StringIO()
        self.show(certain)

    def advance(self) -> None:
        """Continue with the next stream at the end of the current one."""
        while self.is_shown() and self.current + 1 < len(self.ended):
            self.current += 1
            self.begin()

    def is_shown(self) -> bool:
        """Whether the current stream has been written to its end."""
        return self.ended[self.current]

    def show(self, text: str) -> None:
        """Write more of the current stream."""
        self.output.write(text)

    def close(self) -> None:
        """Write the rest of all streams, which grow no more."""
        for stream in range(self.current, len(self.ended)):
            if not self.ended[stream]:
                self.ended[stream] = True
                self.pass_on(stream, self.doubtful[stream])
        self.advance()
