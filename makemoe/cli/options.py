"""The options of `predict`, `serve`, `inspect`, `export`, `import` and `consolidate`.

Does not import torch, so that help is fast.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from makemoe.cli.help import UNKNOWN_HELP
from makemoe.cli.parser import (
    OneLineErrors,
    add_loading_options,
    add_root_option,
    add_trust_option,
    which_model,
)
from makemoe.cli.writing import SEPARATOR
from makemoe.errors import UsageError
from makemoe.sizes import check_seed
from makemoe.training.thresholds import DEAD_BELOW, WORKS_FROM

if TYPE_CHECKING:
    from makemoe.data.unknown import Unknown
    from makemoe.exchange.export import FormatName
    from makemoe.serve.answers import Log

UNKNOWN: tuple["Unknown", ...] = ("error", "skip")
LOGS: tuple["Log", ...] = ("none", "requests", "text")
FORMATS: tuple["FormatName", ...] = ("transformers", "safetensors")

CKPT_PATH_HELP = "checkpoint file, name of a run, or `last` or `best` of the newest run"

UNHEALTHY = 3
"""Exit status if an expert is dead, a router has collapsed or the loss is not finite."""


def predict_parser() -> OneLineErrors:
    """The parser of `predict`."""
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
    return parser


def predict_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `predict`, and check what can be checked without the checkpoint.

    Raises:
        UsageError: for an unknown, missing or invalid option.
    """
    options = predict_parser().parse_args(arguments)
    if options.ckpt_path is None:
        raise which_model("sample from")
    check_counts(options, "max_new_tokens", "num_samples")
    check_seed(options.seed, "--seed")
    if "" in options.stop:
        raise UsageError("--stop is empty and would end every text at once: give a string")
    return options


def serve_parser() -> OneLineErrors:
    """The parser of `serve`."""
    parser = reading_parser(
        "serve",
        "Serve a page that shows which experts write a text, and POST /v1/completions as OpenAI "
        "clients send it. Texts of all requests are sampled together. Ctrl-C ends it.",
    )
    add = parser.add_argument
    add("--port", metavar="N", type=int, default=8000, help="0 takes a free one (%(default)s)")
    add(
        "--host",
        metavar="NAME",
        default="127.0.0.1",
        help="address to listen on (%(default)s: this machine only; 0.0.0.0: every network)",
    )
    add(
        "--token",
        metavar="TEXT",
        help="what clients must send as Authorization: Bearer TEXT; better set in the environment "
        "variable MAKEMOE_TOKEN, which other users of the machine cannot see",
    )
    add(
        "--allow_origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="origin, such as https://example.com, whose pages may ask; may be repeated",
    )
    add(
        "--allow_host",
        metavar="NAME",
        action="append",
        default=[],
        help="name under which clients reach the server, beside localhost and addresses; may be "
        "repeated",
    )
    limits = {
        "max_streams": (64, "texts sampled together"),
        "max_waiting": (256, "texts that wait for a place"),
        "max_new_tokens": (4096, "tokens a text may ask for"),
        "max_prompt": (32768, "characters of a prompt"),
        "timeout": (300, "seconds a request may take"),
    }
    for name, (most, meaning) in limits.items():
        add(f"--{name}", metavar="N", type=int, default=most, help=f"{meaning} (%(default)s)")
    add(
        "--log",
        choices=LOGS,
        default="none",
        help="what to write about each request on standard error: nothing, one line of numbers, or "
        "its prompts and texts too (%(default)s)",
    )
    add_loading_options(parser)
    return parser


def serve_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `serve`.

    Raises:
        UsageError: for an unknown, missing or invalid option.
    """
    options = serve_parser().parse_args(arguments)
    if options.ckpt_path is None:
        raise which_model("serve")
    check_counts(options, "max_streams", "max_waiting", "max_new_tokens", "max_prompt", "timeout")
    return options


def inspect_parser() -> OneLineErrors:
    """The parser of `inspect`."""
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
        help="text, folder or pattern whose validation split is evaluated (default: the training "
        "text)",
    )
    add(
        "--data.text_key",
        metavar="KEY",
        dest="text_key",
        help="key of the text in each line of a .jsonl file (default: as in training)",
    )
    add_unknown_option(parser)
    add("--json", action="store_true", help="print everything as one JSON object")
    add_loading_options(parser)
    return parser


def inspect_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `inspect`.

    Raises:
        UsageError: for an unknown or missing option.
    """
    options = inspect_parser().parse_args(arguments)
    if options.ckpt_path is None:
        raise which_model("inspect")
    return options


def export_parser() -> OneLineErrors:
    """The parser of `export`."""
    parser = reading_parser(
        "export",
        "Write a checkpoint as a new folder for other programs: weights as safetensors, settings "
        "and tokenizer as JSON, and a README.md with its figures.",
    )
    add = parser.add_argument
    add("--to", metavar="DIR", help="the new folder, which must not exist")
    add(
        "--format",
        choices=FORMATS,
        default="transformers",
        help="`transformers` loads the folder with AutoModelForCausalLM and AutoTokenizer; the "
        "parts of the model must have counterparts there. `safetensors` is plain weights with "
        "their settings, for any model (%(default)s)",
    )
    add_trust_option(parser)
    add_root_option(parser)
    return parser


def export_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `export`.

    Raises:
        UsageError: for an unknown, missing or invalid option.
    """
    options = export_parser().parse_args(arguments)
    if options.ckpt_path is None:
        raise which_model("export")
    if not options.to:
        raise UsageError("--to is missing: which folder to write? (it must not exist)")
    return options


def import_parser() -> OneLineErrors:
    """The parser of `import`."""
    parser = OneLineErrors(
        prog="makemoe import",
        allow_abbrev=False,
        description="Read a folder of makemoe export or of transformers as a checkpoint that "
        "predict, validate, inspect and fit take. Only safetensors and JSON are read, and no code "
        "in the folder runs.",
    )
    add = parser.add_argument
    add("--from", metavar="DIR", dest="folder", help="the folder")
    add("--to", metavar="FILE", help="the new checkpoint (default: the folder's name, with .ckpt)")
    add(
        "--block_size",
        metavar="N",
        type=int,
        help="longest context of the checkpoint, in tokens (default: that of the model)",
    )
    add_trust_option(parser)
    return parser


def import_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `import`.

    Raises:
        UsageError: for an unknown, missing or invalid option.
    """
    options = import_parser().parse_args(arguments)
    if not options.folder:
        raise UsageError("--from is missing: which folder to read?")
    return options


def consolidate_parser() -> OneLineErrors:
    """The parser of `consolidate`."""
    parser = reading_parser(
        "consolidate",
        "Make one file of a checkpoint in pieces, which a run writes with "
        "--trainer.strategy.init_args.gather false. Every command takes both.",
    )
    parser.add_argument("--to", metavar="FILE", help="the new checkpoint")
    add_root_option(parser)
    return parser


def consolidate_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `consolidate`.

    Raises:
        UsageError: for an unknown or missing option.
    """
    options = consolidate_parser().parse_args(arguments)
    if options.ckpt_path is None:
        raise which_model("consolidate")
    if not options.to:
        raise UsageError("--to is missing: which file to write? (it must not exist)")
    return options


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Raise UsageError for an option that is less than 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)} must be 1 or more")


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
