"""`makemoe predict`: text from a checkpoint to standard output, and nothing else there."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from makemoe.checkpoint.inference import load_for_inference
from makemoe.cli.experts import Colours, Read, Trace, why_no_colours
from makemoe.cli.parser import OneLineErrors, add_loading_options, which_model
from makemoe.cli.writing import SEPARATOR, InOrder
from makemoe.errors import DataError, UsageError
from makemoe.files import STANDARD_INPUT, read_standard_input, read_whole
from makemoe.model.generate import Sampler, generate
from makemoe.model.transformer import MoETransformer
from makemoe.run import RunSettings, find_checkpoint
from makemoe.training.memory import keep_freed_memory

MANY_STREAMS = 8
"""From this many streams on, a second CPU thread helps more than it costs."""

MOST_PROMPT_BYTES = 16 << 20

MOST_SEED = 1 << 62
"""Leaves room below torch's own limit for the numbers of the samples."""


def predict(arguments: Sequence[str]) -> int:
    """Load a checkpoint, sample, write; the exit status."""
    options = parse(arguments)
    prompts = read_prompts(options)
    sampler_settings = {
        "temperature": options.temperature,
        "top_k": options.sample_top_k,
        "top_p": options.sample_top_p,
    }
    # A sample's draws depend on the seed and its number among those of its prompt.
    seeds = [options.seed + n for _ in prompts or [""] for n in range(options.num_samples)]
    sampler = Sampler(seeds, **sampler_settings)
    trace = None if options.trace is None else Trace(options.trace)
    path = find_checkpoint(options.ckpt_path, RunSettings(root=options.root))
    model, tokenizer = load_for_inference(path, options.trust)
    try:
        begin_with = prompts or [tokenizer.beginning()]
        encoded = [tokenizer.encode(prompt).tolist() for prompt in begin_with]
    except DataError as error:
        raise DataError(f"--prompt: {error}") from error
    streams = [ids for ids in encoded for _ in range(options.num_samples)]
    if options.device == "cpu" and len(streams) < MANY_STREAMS:
        torch.set_num_threads(1)
    keep_freed_memory()
    # What stands in for a missing prompt is not part of the text.
    texts = [prompt for prompt in prompts or [""] for _ in range(options.num_samples)]
    colours = None if options.show_experts is None else begin_colours(options.show_experts, model)
    with trace or nullcontext():
        reader = None
        if colours is not None or trace is not None:
            reader = Read(texts, options.stop, streams, model.block_size, colours, trace)
        writer = reader or InOrder(texts, options.stop)
        generate(
            model.to(options.device),
            streams,
            options.max_new_tokens,
            sampler,
            on_token=lambda stream, token: writer.add(stream, tokenizer.decode([token])),
            on_read=None if reader is None else reader.take,
        )
        writer.close()
    return 0


def parse(arguments: Sequence[str]) -> Any:
    """The options, checked as far as they can be without the checkpoint."""
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
    add_loading_options(parser)
    options = parser.parse_args(arguments)
    if options.ckpt_path is None:
        raise which_model("sample from")
    for name in ("max_new_tokens", "num_samples"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)} is not positive: give 1 or more")
    if not 0 <= options.seed < MOST_SEED:
        raise UsageError(f"--seed {options.seed} is no seed: give 0 or more, less than 2**62")
    if "" in options.stop:
        raise UsageError("--stop is empty and would end every text at once: give some text")
    options.device = find_device(options.device)
    return options


def begin_colours(layer: int, model: MoETransformer) -> Colours:
    """What shows the experts of a layer; the legend is told, or why there are no colours."""
    if not 0 <= layer < len(model.blocks):
        raise UsageError(
            f"--show_experts {layer} is no layer: the model has 0 to {len(model.blocks) - 1}"
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
