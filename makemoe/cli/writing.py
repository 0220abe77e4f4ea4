"""How sampled texts get to standard output: in order, and no sooner than they are certain."""

import sys
from collections.abc import Sequence
from io import StringIO

SEPARATOR = "\n---\n"


class Output:
    """Standard output: texts with a separator between them, each piece at once."""

    def __init__(self) -> None:
        self.texts, self.ends_line = 0, True
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", newline="")

    def begin_text(self) -> None:
        """Begin the next text."""
        if self.texts:
            self.write(SEPARATOR)
        self.texts, self.ends_line = self.texts + 1, False

    def write(self, text: str) -> None:
        """Write a part of the text, for whoever reads it to see now."""
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self.ends_line = text.endswith("\n")

    def close(self) -> None:
        """A text that does not end a line gets a newline."""
        if not self.ends_line:
            self.write("\n")


class InOrder:
    """Writes streams one after another while all of them grow.

    The first unfinished one goes out as it is made; the others wait for their turn. Text that may
    turn out to be the beginning of a stop text is held back.

    Args:
        beginnings: what each stream begins with.
        stops: texts before which a stream ends.
        output: where they go.
    """

    def __init__(self, beginnings: Sequence[str], stops: Sequence[str], output: Output) -> None:
        self.stops, self.output = stops, output
        self.waiting = [StringIO() for _ in beginnings]  # certain, of streams yet to come
        self.doubtful = [""] * len(beginnings)
        self.ended = [False] * len(beginnings)
        self.current = 0
        for waiting, beginning in zip(self.waiting, beginnings, strict=True):
            waiting.write(beginning)
        self.begin()

    def add(self, stream: int, text: str) -> bool:
        """Take new text; whether the stream has reached a stop text."""
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
        """Take certain text."""
        if stream == self.current:
            self.show(text)
        else:
            self.waiting[stream].write(text)

    def may_begin_a_stop(self, text: str) -> int:
        """How many characters at the end of a text may be the beginning of a stop text."""
        lengths = (
            n
            for stop in self.stops
            for n in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:n])
        )
        return max(lengths, default=0)

    def begin(self) -> None:
        """Begin the current stream with what there is of it."""
        self.output.begin_text()
        certain = self.waiting[self.current].getvalue()
        self.waiting[self.current] = StringIO()
        self.show(certain)

    def advance(self) -> None:
        """Go on to the next stream at the end of the current one."""
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
        """Write the rest: nothing more will come."""
        for stream in range(self.current, len(self.ended)):
            if not self.ended[stream]:
                self.ended[stream] = True
                self.pass_on(stream, self.doubtful[stream])
        self.advance()
