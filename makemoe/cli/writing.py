"""Writes sampled texts to standard output, with a separator between them."""

import sys

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
