"""The options of `predict` and `inspect`. Does not import torch, so that help is fast."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from makemoe.cli.help import UNKNOWN_HELP
from makemoe.cli.parser import OneLineErrors, add_loading_options, which_model
from makemoe.cli.writing import SEPARATOR
from makemoe.errors import UsageError
from makemoe.training.thresholds import DEAD_BELOW, WORKS_FROM

if TYPE_CHECKING:
    from makemoe.data.unknown import Unknown

UNKNOWN: tuple["Unknown", ...] = ("error", "skip")

CKPT_PATH_HELP = "checkpoint file, name of a run, or `last` or `best` of the newest run"

SEED_END = 1 << 62
"""Seeds are less than this, below torch's limit, so that a sample's number can be added."""

UNHEALTHY = 3
"""Exit status if an expert is dead, a router has collapsed or the loss is not finite."""


def predict_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `predict`, and check what can be checked without the checkpoint.

    Raises:
        UsageError: for an unknown, missing or invalid option.
    """
    parser = reading_parser(
        "predict",
        "Sample text from a checkpoint. Only the text goes to standard output; several "
        f"samples are separated by a line of '{SEPARATOR.strip()}'.",
    )
    add = parser.add_argument
    add(
        "--prompt",
        metavar="TEXT",
        action="append",
        default=[],
        help="start of the text; may be repeated (default: a newline, or the end of another text)",
    )
    add(
        "--prompt_file",
        metavar="FILE",
        help="UTF-8 file with one prompt; - is standard input",
    )
    add("--max_new_tokens", metavar="N", type=int, default=500, help="tokens to add (%(default)s)")
    add("--num_samples", metavar="N", type=int, default=1, help="texts per prompt (%(default)s)")
    add(
        "--temperature",
        metavar="X",
        type=float,
        default=1.0,
        help="0 is greedy, 1 is the model's own distribution, larger is more random (%(default)s)",
    )
    add("--sample_top_k", metavar="N", type=int, help="sample from the N most likely tokens only")
    add(
        "--sample_top_p",
        metavar="X",
        type=float,
        help="sample from the smallest set of most likely tokens with this total probability",
    )
    add(
        "--seed",
        metavar="N",
        type=int,
        default=1337,
        help="the same seed gives the same text, whatever else is sampled (%(default)s)",
    )
    add(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="end a text before this string; may be repeated",
    )
    add(
        "--show_experts",
        metavar="LAYER",
        type=int,
        help="colour each token by its expert with the largest weight in this layer (0 is the "
        "first); on a terminal, unless NO_COLOR is set",
    )
    add(
        "--trace",
        metavar="FILE",
        help="new file for the experts and weights of each token, per layer, as JSON lines",
    )
    add_unknown_option(parser)
    add_loading_options(parser)
    options = parser.parse_args(arguments)
    if options.ckpt_path is None:
        raise which_model("sample from")
    for name in ("max_new_tokens", "num_samples"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)} must be 1 or more")
    if not 0 <= options.seed < SEED_END:
        raise UsageError(f"--seed {options.seed}: invalid seed; use 0 to 2**62 - 1")
    if "" in options.stop:
        raise UsageError("--stop is empty and would end every text at once: give a string")
    return options


def inspect_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `inspect`.

    Raises:
        UsageError: for an unknown or missing option.
    """
    parser = reading_parser(
        "inspect",
        "Show the contents of a checkpoint, its exact loss in nats per token, bits per character "
        "and bits per byte, and how evenly its routers load the experts on the validation split. "
        f"Exit status: 0 healthy, {UNHEALTHY} if an expert is dead (less than "
        f"{100 * DEAD_BELOW:g} % of the mean load), a router has collapsed (at most K + (E - K)/4 "
        f"of its E experts get {100 * WORKS_FROM:g} % of the mean load or more) or the loss is not "
        "finite.",
    )
    add = parser.add_argument
    add(
        "--data.corpus",
        metavar="FILE",
        dest="corpus",
        help="text whose last 10 %% is evaluated (default: the training text)",
    )
    add_unknown_option(parser)
    add("--json", action="store_true", help="print everything as one JSON object")
    add_loading_options(parser)
    options = parser.parse_args(arguments)
    if options.ckpt_path is None:
        raise which_model("inspect")
    return options


def reading_parser(command: str, description: str) -> OneLineErrors:
    """The parser of a command that reads a checkpoint."""
    parser = OneLineErrors(prog=f"makemoe {command}", allow_abbrev=False, description=description)
    parser.add_argument("--ckpt_path", metavar="FILE", help=CKPT_PATH_HELP)
    return parser


def add_unknown_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what happens to characters the model does not know."""
    parser.add_argument(
        "--data.unknown",
        dest="unknown",
        choices=UNKNOWN,
        default="error",
        help=f"{UNKNOWN_HELP} (%(default)s)",
    )
