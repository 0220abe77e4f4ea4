"""How sampled texts get to standard output: in order, and no sooner than they are certain."""

import sys
from collections.abc import Sequence

SEPARATOR = "\n---\n"


class InOrder:
    """Writes streams one after another while all of them grow.

    The first unfinished one goes out as it is made; the others wait for their turn. Text that may
    turn out to be the beginning of a stop text is held back.

    Args:
        beginnings: what each stream begins with.
        stops: texts before which a stream ends.
    """

    def __init__(self, beginnings: Sequence[str], stops: Sequence[str]) -> None:
        self.texts, self.stops = list(beginnings), stops
        self.given = [len(beginning) for beginning in beginnings]
        self.ended = [False] * len(beginnings)
        self.current, self.written = 0, 0
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", newline="")
        self.advance()

    def add(self, stream: int, text: str) -> bool:
        """Take new text; whether the stream has reached a stop text."""
        self.texts[stream] += text
        whole = len(self.texts[stream])
        # Only the end is new: a stop text found earlier would have ended the stream.
        window = max((len(stop) for stop in self.stops), default=0) + len(text)
        tail = self.texts[stream][max(self.given[stream], whole - window) :]
        found = [tail.index(stop) for stop in self.stops if stop in tail]
        if found:
            self.texts[stream] = self.texts[stream][: whole - len(tail) + min(found)]
            self.ended[stream] = True
        self.advance()
        return self.ended[stream]

    def advance(self) -> None:
        """Write what is certain of the current stream; go on to the next at its end."""
        while True:
            certain = max(self.written, self.certain())
            self.emit(certain)
            self.written = certain
            at_end = self.ended[self.current] and certain == len(self.texts[self.current])
            if not at_end or self.current + 1 == len(self.texts):
                return
            self.current, self.written = self.current + 1, 0
            self.write(SEPARATOR)

    def certain(self) -> int:
        """How much of the current stream's text may be written, in characters."""
        text = self.texts[self.current]
        if self.ended[self.current]:
            return len(text)
        # The end of what is new may be the beginning of a stop text.
        new = len(text) - self.given[self.current]
        doubtful = (
            n
            for stop in self.stops
            for n in range(1, min(len(stop), new + 1))
            if text.endswith(stop[:n])
        )
        return len(text) - max(doubtful, default=0)

    def emit(self, end: int) -> None:
        """Write the current stream's text up to `end`."""
        self.write(self.texts[self.current][self.written : end])

    def close(self) -> None:
        """Write the rest; a text that does not end a line gets a newline."""
        self.ended = [True] * len(self.texts)
        self.advance()
        if not self.texts[-1].endswith("\n"):
            self.write("\n")
        sys.stdout.flush()

    def write(self, text: str) -> None:
        """To standard output; at once if someone is watching."""
        sys.stdout.write(text)
        if text and sys.stdout.isatty():
            sys.stdout.flush()
