"""`makemoe predict`: text from a checkpoint to standard output, and nothing else there."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, get_args

import torch

from makemoe.checkpoint.inference import load_for_inference
from makemoe.cli.experts import Colours, Read, Trace, why_no_colours
from makemoe.cli.help import UNKNOWN_HELP
from makemoe.cli.parser import CKPT_PATH_HELP, OneLineErrors, add_loading_options, which_model
from makemoe.cli.writing import SEPARATOR, InOrder, Output
from makemoe.data.tokenizer import Tokenizer
from makemoe.data.unknown import Unknown, encode_known
from makemoe.errors import DataError, UsageError
from makemoe.files import STANDARD_INPUT, read_standard_input, read_whole
from makemoe.model.generate import Sampler, stream
from makemoe.model.transformer import MoETransformer
from makemoe.run import RunSettings, find_checkpoint, tell_checkpoint
from makemoe.training.memory import keep_freed_memory

MANY_STREAMS = 8
"""From this many streams on, a second CPU thread helps more than it costs."""

GROUP = 64
"""Streams sampled side by side: more are hardly faster per stream."""

GROUP_BYTES = 1 << 30
"""Memory that a group may take."""

GROUP_TOKENS = 1 << 20
"""Tokens that a group may make: all but the first of its texts wait in memory."""

MOST_PROMPT_BYTES = 16 << 20

MOST_SEED = 1 << 62
"""Leaves room below torch's own limit for the numbers of the samples."""


class Sample(NamedTuple):
    """A text to make: what it begins with, as shown and as read, and the seed of its draws.

    Where no prompt is given, something that is not shown stands in for it.
    """

    shown: str
    ids: list[int]
    seed: int


def predict(arguments: Sequence[str]) -> int:
    """Load a checkpoint, sample, write; the exit status."""
    options = parse(arguments)
    prompts = read_prompts(options)
    new_sampler = partial(
        Sampler,
        temperature=options.temperature,
        top_k=options.sample_top_k,
        top_p=options.sample_top_p,
    )
    new_sampler([])  # which refuses what cannot be
    trace = None if options.trace is None else Trace(options.trace)
    path = find_checkpoint(options.ckpt_path, RunSettings(root=options.root))
    model, tokenizer = load_for_inference(path, options.trust)
    known = [encode_known(text, tokenizer, "--prompt", options.unknown) for text in prompts]
    wanted = samples(known, tokenizer, options.num_samples, options.seed)
    total = max(1, len(prompts)) * options.num_samples
    tell_checkpoint(path)
    keep_freed_memory()
    colours = None if options.show_experts is None else begin_colours(options.show_experts, model)
    model.to(options.device)
    output, most_threads, done = Output(), torch.get_num_threads(), 0
    with trace or nullcontext():
        for group in groups(wanted, total, group_size(model, options.max_new_tokens)):
            if options.device == "cpu":
                torch.set_num_threads(1 if len(group) < MANY_STREAMS else most_threads)
            shown, ids, seeds = map(list, zip(*group, strict=True))
            writer: InOrder
            if colours is None and trace is None:
                writer = InOrder(shown, options.stop, output)
            else:
                size = model.block_size
                writer = Read(shown, options.stop, output, ids, size, colours, trace, done)
            sampler = new_sampler(seeds)
            write(ids, model, tokenizer, options.max_new_tokens, sampler, writer)
            done += len(group)
    output.close()
    return 0


def write(
    prompts: Sequence[Sequence[int]],
    model: MoETransformer,
    tokenizer: Tokenizer,
    max_new_tokens: int,
    sampler: Sampler,
    writer: InOrder,
) -> None:
    """Sample texts side by side, and write them as they are made."""
    stream(
        model,
        prompts,
        max_new_tokens,
        sampler,
        lambda b, token: writer.add(b, tokenizer.decode([token])),
        writer.take if isinstance(writer, Read) else None,
    )
    writer.close()


def samples(
    prompts: Sequence[str], tokenizer: Tokenizer, count: int, seed: int
) -> Iterator[Sample]:
    """The samples of each prompt, prompt by prompt.

    A sample's draws depend on the seed and its number among those of its prompt.
    """
    for shown in prompts or [""]:
        ids = tokenizer.encode(shown or tokenizer.beginning()).tolist()
        for number in range(count):
            yield Sample(shown, ids, seed + number)


def groups(wanted: Iterator[Sample], total: int, most: int) -> Iterator[list[Sample]]:
    """What is sampled side by side: all if that fits, or the first by itself, then as many as do.

    Beside others the first would take several times as long to appear.
    """
    group = list(islice(wanted, total if total <= most else 1))
    while group:
        yield group
        group = list(islice(wanted, most))


def group_size(model: MoETransformer, max_new_tokens: int) -> int:
    """How many streams at most are sampled side by side."""
    floats = 2 * len(model.blocks) * model.n_embd + model.vocab_size  # cache, and a prompt's logits
    by_memory = GROUP_BYTES // (4 * floats * model.block_size)
    return max(1, min(GROUP, by_memory, GROUP_TOKENS // max_new_tokens))


def parse(arguments: Sequence[str]) -> Any:
    """The options, checked as far as they can be without the checkpoint."""
    parser = OneLineErrors(
        prog="makemoe predict",
        allow_abbrev=False,
        description="Sample text from a checkpoint. Standard output gets the text alone; several "
        f"samples are separated by a line of '{SEPARATOR.strip()}'.",
    )
    add = parser.add_argument
    add("--ckpt_path", metavar="FILE", help=CKPT_PATH_HELP)
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
    if not 0 <= options.seed < MOST_SEED:
        raise UsageError(f"--seed {options.seed} is invalid: give 0 or more, less than 2**62")
    if "" in options.stop:
        raise UsageError("--stop is empty and would end every text at once: give some text")
    options.device = find_device(options.device)
    return options


def add_unknown_option(parser: argparse.ArgumentParser) -> None:
    """What is done about characters that the model does not know."""
    parser.add_argument(
        "--data.unknown",
        dest="unknown",
        choices=get_args(Unknown),
        default="error",
        help=f"{UNKNOWN_HELP} (%(default)s)",
    )


def begin_colours(layer: int, model: MoETransformer) -> Colours:
    """What shows the experts of a layer; the legend is told, or why there are no colours."""
    if not 0 <= layer < len(model.blocks):
        raise UsageError(
            f"--show_experts {layer}: the model's layers are 0 to {len(model.blocks) - 1}"
        )
    why_not = why_no_colours()
    colours = Colours(layer, model.num_experts, on=why_not is None)
    print(colours.legend(why_not), file=sys.stderr)
    return colours


def find_device(name: str) -> str:
    """The device of that name, if this machine has it."""
    if name == "auto":
        here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return next((device for device, is_here in here.items() if is_here), "cpu")
    try:
        torch.zeros(1, device=name).item()  # which a device that only pretends cannot do
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name} is not on this machine: try --device cpu") from error
    return name


def read_prompts(options: argparse.Namespace) -> list[str]:
    """All prompts, in the order given."""
    prompts = list(options.prompt)
    if (path := options.prompt_file) is not None:
        try:
            read = read_standard_input if path == STANDARD_INPUT else partial(read_whole, path)
            text = read(MOST_PROMPT_BYTES).decode()
            prompts.append(text.replace("\r\n", "\n").replace("\r", "\n"))
        except UnicodeDecodeError as error:
            raise DataError(f"--prompt_file {path}: not UTF-8 at byte {error.start}") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"--prompt_file {path}: {reason}") from error
    if "" in prompts:
        raise UsageError("a prompt is empty: leave it out to begin at a newline")
    return prompts
