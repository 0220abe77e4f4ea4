"""The options of `predict` and `inspect`. Does not import torch, so that help appears at once."""

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

SEED_END = 1 << 62
"""Seeds are less than this, below torch's limit, so that a sample's number can be added."""

UNHEALTHY = 3
"""Exit status if an expert is dead, a router has collapsed or the loss is not finite."""


def predict_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `predict`, and check what can be checked without the checkpoint.

    Raises:
        UsageError: for an unknown, missing or invalid option.
    """
    parser = OneLineErrors(
        prog="makemoe predict",
        allow_abbrev=False,
        description="Sample text from a checkpoint. Standard output gets the text alone; several "
        f"samples are separated by a line of '{SEPARATOR.strip()}'.",
    )
    add = parser.add_argument
    add("--ckpt_path", metavar="FILE", help="checkpoint; `last` or `best`: of the newest run")
    add(
        "--prompt",
        metavar="TEXT",
        action="append",
        default=[],
        help="what the text begins with; may be repeated (without one: a newline)",
    )
    add(
        "--prompt_file",
        metavar="FILE",
        help="UTF-8 file that holds one prompt; - is standard input",
    )
    add("--max_new_tokens", metavar="N", type=int, default=500, help="tokens to add (%(default)s)")
    add("--num_samples", metavar="N", type=int, default=1, help="texts a prompt (%(default)s)")
    add(
        "--temperature",
        metavar="X",
        type=float,
        default=1.0,
        help="0 is greedy, 1 the model's own distribution, more is wilder (%(default)s)",
    )
    add("--sample_top_k", metavar="N", type=int, help="draw from the N likeliest tokens only")
    add(
        "--sample_top_p",
        metavar="X",
        type=float,
        help="draw from the fewest likeliest tokens that have this share of probability",
    )
    add(
        "--seed",
        metavar="N",
        type=int,
        default=1337,
        help="same seed, same text, whatever is sampled beside it (%(default)s)",
    )
    add(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="end a text before this; may be repeated",
    )
    add(
        "--show_experts",
        metavar="LAYER",
        type=int,
        help="give each character the colour of its weightiest expert in that layer, 0 the first; "
        "on a terminal, unless NO_COLOR is set",
    )
    add(
        "--trace",
        metavar="FILE",
        help="write each character's experts and their weights, layer by layer, as JSON lines",
    )
    add_unknown_option(parser)
    add_loading_options(parser)
    options = parser.parse_args(arguments)
    if options.ckpt_path is None:
        raise which_model("sample from")
    for name in ("max_new_tokens", "num_samples"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)} is not positive: give 1 or more")
    if not 0 <= options.seed < SEED_END:
        raise UsageError(f"--seed {options.seed} is invalid: give 0 or more, less than 2**62")
    if "" in options.stop:
        raise UsageError("--stop is empty and would end every text at once: give some text")
    return options


def inspect_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `inspect`.

    Raises:
        UsageError: for an unknown or missing option.
    """
    parser = OneLineErrors(
        prog="makemoe inspect",
        allow_abbrev=False,
        description="What a checkpoint holds, its exact loss in nats per token and bits per "
        "character, and how evenly its routers load the experts on the validation split. Exit "
        f"status: 0 healthy, {UNHEALTHY} when an expert is dead (less than {100 * DEAD_BELOW:g} % "
        "of the even load), a router has collapsed (of its E experts at most K + (E - K)/4 get "
        f"{100 * WORKS_FROM:g} % of the even load or more) or the loss is no finite number.",
    )
    add = parser.add_argument
    add("--ckpt_path", metavar="FILE", help="checkpoint; `last` or `best`: of the newest run")
    add(
        "--data.corpus",
        metavar="FILE",
        dest="corpus",
        help="text whose last 10 %% is looked at (the one trained on)",
    )
    add_unknown_option(parser)
    add("--json", action="store_true", help="everything as one JSON object")
    add_loading_options(parser)
    options = parser.parse_args(arguments)
    if options.ckpt_path is None:
        raise which_model("inspect")
    return options


def add_unknown_option(parser: argparse.ArgumentParser) -> None:
    """What is done about characters that the model does not know."""
    parser.add_argument(
        "--data.unknown",
        dest="unknown",
        choices=UNKNOWN,
        default="error",
        help=f"{UNKNOWN_HELP} (%(default)s)",
    )
