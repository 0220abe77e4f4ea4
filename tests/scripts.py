"""Options of the scripts in this folder: help, and one line for what is wrong."""

import argparse
from typing import Any, NoReturn


class Options(argparse.ArgumentParser):
    """A parser whose errors are one line; its description is the script's docstring."""

    def __init__(self, prog: str, doc: str | None, **more: Any) -> None:
        super().__init__(prog, description=doc, allow_abbrev=False, **more)

    def error(self, message: str) -> NoReturn:
        """Print it, and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive(text: str) -> int:
    """The type of an option that is a number of things."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)
