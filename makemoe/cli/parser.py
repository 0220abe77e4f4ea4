"""Parsers with help of one screen and errors of one line."""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

from makemoe.cli.signatures import short_help
from makemoe.errors import UsageError


class OneLineErrors(argparse.ArgumentParser):
    """A parser that raises errors as a UsageError of one line, with the nearest known option."""

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print; argparse would ignore it if that fails."""
        print(message, end="", file=file or sys.stderr, flush=True)

    def error(self, message: str, ex: BaseException | None = None) -> NoReturn:
        """Raise a UsageError that names the option and the problem."""
        cause = ex
        while cause is not None:
            if isinstance(cause, UsageError):
                # From an inner parser, for the arguments of a class.
                outer = PARSER_KEY.match(message)
                reason = str(cause)
                if outer:
                    within = "." if reason.startswith("--") else ": "
                    reason = f"--{outer.group(1)}{within}{reason.removeprefix('--')}"
                raise UsageError(shortened(reason)) from ex
            cause = cause.__cause__ or cause.__context__
        named = PARSER_KEY.match(message)
        if named and (hint := self.hint(named.group(1), message)):
            raise UsageError(f"--{named.group(1)}: {shortened(hint)}") from ex
        raise UsageError(shortened(in_one_line(message, known_keys(self)))) from ex

    def hint(self, key: str, message: str) -> str:
        """A better message than the type's for an invalid value; empty if there is none."""
        return ""


class ShortHelp(OneLineErrors):
    """A parser whose help lists the options in `shown`, one per line; `--help_all` lists all.

    Attributes:
        command: the command as the user types it.
        shown: prefixes of option names and their help text; an empty text means the option's own.
    """

    command: str
    shown: Mapping[str, str]

    def shorten_help(self, command: str, shown: Mapping[str, str]) -> None:
        """Set what --help shows."""
        self.command, self.shown = command, shown
        self.add_argument("--help_all", action=HelpAll, help="list every option")

    def format_help(self) -> str:
        """The short help if it was set."""
        if not hasattr(self, "shown"):
            return super().format_help()
        return short_help(self.command.removeprefix("makemoe "), self.shown)


class HelpAll(argparse.Action):
    """Prints the help with every option."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs
        )

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> NoReturn:
        """Print and exit."""
        if isinstance(parser, ShortHelp):
            del parser.shown
        parser.print_help()
        parser.exit()


def known_keys(parser: argparse.ArgumentParser) -> list[str]:
    """Every option of a parser and of its subcommands, without dashes."""
    keys = []
    for action in parser._actions:
        keys += [o[2:] for o in action.option_strings if o.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            keys += [key for sub in action.choices.values() for key in known_keys(sub)]
    return keys


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A suggestion, or an empty string if no known word is similar."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f": did you mean {prefix}{near[0]}?" if near else ""


CKPT_PATH_HELP = "checkpoint file, a run's name, or `last` or `best` of the newest run"


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the device, the modules to trust, and where to find a checkpoint."""
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, mps, or auto: the first available one of cuda, mps and cpu",
    )
    add_trust_option(parser)
    add_root_option(parser)


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names modules to trust."""
    parser.add_argument(
        "--trust",
        metavar="MODULE",
        action="append",
        default=[],
        help="module whose classes the checkpoint may name, in addition to makemoe; may be "
        "repeated",
    )


def add_root_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where runs are."""
    parser.add_argument(
        "--run.root",
        metavar="DIR",
        dest="root",
        default="checkpoints",
        help="folder of all runs (%(default)s)",
    )


def which_model(command: str) -> UsageError:
    """The error of a command that needs a checkpoint and got none."""
    return UsageError(f"--ckpt_path is missing: which model to {command}? (try `last`)")


def in_one_line(message: str, known: list[str]) -> str:
    """A parser's message in one line, with a suggestion for an unknown name."""
    words = " ".join(message.split())
    if found := re.match(r"(?i)unrecognized arguments: (-*)([^ =]+)", words):
        dashes, key = found.groups()
        if not dashes:  # the shell may have expanded a pattern
            return f"unknown option {key}: see --help; quote a pattern, as in 'texts/*.txt'"
        near = did_you_mean(key, known, "--")
        return f"unknown option {dashes}{key}{near or ': see --help'}"
    if found := re.search(r"(?:does not accept option|^Option) '([\w.]+)'", words):
        key = found.group(1)
        return f"unknown key {key}{did_you_mean(key, known) or ': see --help_all'}"
    if found := re.match(r'Linked "([\w.]+)" must be given via "([\w.]+)"', words):
        return "--{} is derived from {}: omit it".format(*found.groups())
    if found := re.match(r"argument (?:-\w/)?(--[\w.]+): (.*)", words):
        return f"{found.group(1)}: {reasons(found.group(2))}"
    if found := PARSER_KEY.match(message):
        return f"--{found.group(1)}: {reasons(message[found.end() :])}"
    return words


def shortened(text: str, most: int = 400) -> str:
    """A text in one line, without its middle if it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def got(value: Any) -> str:
    """A value as an error shows it."""
    text = re.sub(r"^Namespace\(class_path='([\w.]+)'.*", r"\1", str(value), flags=re.DOTALL)
    return f"(got {shortened(text, 80)})"


PARSER_KEY = re.compile(r'Parser key "([\w.]+)":')

NOISE = re.compile(
    r"Expected a path but|Does not validate|Subtypes:|Errors:|Given value type:|Not of type"
    r"|Expected a <class 'NoneType'>|Subclass types expect|a class path \(str\)|a dict with"
)

REWORDED = (
    (r"\.* ?(?:Got|Given) value: .*", r""),
    (r"Type .* expects a function or a callable class: ", ""),
    (r"Expected a dot import path string: (.*)", r"unknown class \1; give its module too"),
    (r"Expected an import path or a subclass spec.*", "expected a class"),
    (r"Not a valid subclass of (\w+)", r"expected a \1 class"),
    (r"Expected an? typing\.Literal\[(.*?)\]", r"expected one of \1"),
    (r"Expected a <class '(?:[\w.]*\.)?(?:list|Sequence|Iterable)'>", "expected a list"),
    (r"Expected a <class 'dict'>", "expected {name: value}"),
    (r"the following arguments are required: (.*)", r"arguments are missing: \1"),
    (r"Expected an? <class", "expected <class"),
    (r"invalid (\w+) value: (.*)", r"expected \1 (got \2)"),
    (r"ignored explicit argument (.*)", r"takes no value (got \1)"),
    (r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1"),
    (r"Expected '[\w.]+' to be a subclass of (\w+)", r"expected a \1 class"),
)

GIVEN = re.compile(r".*(?:Got|Given) value: (.*)", re.DOTALL)


def reasons(message: str) -> str:
    """Why a value has none of the accepted types."""
    # The value may have several lines; the text after it is noise.
    given = [value.partition("\n  Subclass types")[0] for value in GIVEN.findall(message)]
    lines = [line.strip("- ") for line in message.splitlines()]
    lines = [line for line in lines if line and not NOISE.match(line)]
    for pattern, words in REWORDED:
        lines = [re.sub(pattern, words, line) for line in lines]
    distinct = list(dict.fromkeys(line for line in lines if line))
    if re.match(r"expected (?:int|float|str)\b", distinct[0]):
        distinct = [line for line in distinct if not line.startswith("unknown class")]
    why = " or ".join(distinct).replace(" or expected ", " or ")
    return " ".join([why, *map(got, given)])
