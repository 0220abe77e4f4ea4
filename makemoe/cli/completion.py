"""`makemoe completion`: prints a script with which a shell completes the command line."""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from makemoe import __version__
from makemoe.cli import shells
from makemoe.cli.parser import OneLineErrors, did_you_mean
from makemoe.cli.shells import Command
from makemoe.errors import UsageError

SHELLS = {"bash": shells.bash, "zsh": shells.zsh, "fish": shells.fish}

DESCRIPTION = """\
Print a script with which a shell completes commands, options, their values, bundled configs, runs
and files. It is made from this version's options: after an update, make it again.

  bash   makemoe completion bash > ~/.makemoe-completion.bash
         echo 'source ~/.makemoe-completion.bash' >> ~/.bashrc
  zsh    makemoe completion zsh > ~/.makemoe-completion.zsh
         echo 'source ~/.makemoe-completion.zsh' >> ~/.zshrc     (after compinit)
  fish   makemoe completion fish > ~/.config/fish/completions/makemoe.fish
"""


def completion(arguments: Sequence[str]) -> int:
    """Print the script and return the exit status.

    Raises:
        UsageError: for an unknown or missing shell.
    """
    shell = parser().parse_args(arguments).shell
    if shell is None:
        raise UsageError(f"which shell: {', '.join(SHELLS)}? See makemoe completion --help")
    if shell not in SHELLS:
        mend = did_you_mean(shell, SHELLS) or f": use {', '.join(SHELLS)}"
        raise UsageError(f"unknown shell {shell!r}{mend}")
    sys.stdout.write(script(shell))
    return 0


def script(shell: str) -> str:
    """The script for a shell."""
    from makemoe.cli.parsers import commands, options_of

    own = parser()
    this = Command("completion", own.description or "", options_of(own), tuple(SHELLS))
    compdef = "#compdef makemoe\n" if shell == "zsh" else ""
    head = f"{compdef}# Completion of makemoe {__version__}, from `makemoe completion {shell}`.\n\n"
    return head + SHELLS[shell]([*commands(), this])


def parser() -> OneLineErrors:
    """The parser of `completion`."""
    own = OneLineErrors(
        prog="makemoe completion",
        allow_abbrev=False,
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
    )
    own.add_argument("shell", nargs="?", metavar="SHELL", help=", ".join(SHELLS))
    return own
