"""Options of the scripts in this folder, and how they end: one line for what is wrong."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from makemoe.errors import MakeMoEError, UsageError

FILES_OF_A_RUN = "last.ckpt", "config.yaml", "metrics.csv"


class Options(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def __init__(self, prog: str, **more: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **more)

    def error(self, message: str) -> NoReturn:
        """Raise it as a UsageError."""
        raise UsageError(message)


def run(prog: str, main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status of `main`; what a user can mend is one line on standard error."""
    try:
        status = main()
    except (MakeMoEError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        status = getattr(error, "exit_status", 1)
    sys.exit(status)


def folder_of_run(text: str) -> Path:
    """The type of an argument that is the folder of a finished run."""
    folder = Path(text)
    for name in FILES_OF_A_RUN:
        if not (folder / name).is_file():
            raise argparse.ArgumentTypeError(f"{text} is not the folder of a run: it has no {name}")
    return folder
