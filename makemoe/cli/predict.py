"""`makemoe predict`: samples text from a checkpoint; only the text goes to standard output."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch

from makemoe.checkpoint.inference import load_for_inference
from makemoe.cli.experts import Colours, Read, Trace
from makemoe.cli.writing import Output
from makemoe.colours import why_no_colours
from makemoe.data.unknown import encode_known
from makemoe.devices import find_device
from makemoe.errors import DataError, UsageError
from makemoe.files import STANDARD_INPUT, read_standard_input, read_whole
from makemoe.model.generate import OnRead, Sampler
from makemoe.model.router import Routing
from makemoe.model.transformer import MoETransformer
from makemoe.run import RunSettings, find_checkpoint, tell_checkpoint
from makemoe.sampling import Growing, InOrder, grow, samples
from makemoe.training.memory import keep_freed_memory

MOST_PROMPT_BYTES = 16 << 20


def predict(options: argparse.Namespace) -> int:
    """Load a checkpoint, sample and write the text; return the exit status.

    Args:
        options: those of `predict_options`.
    """
    device = find_device(options.device)
    prompts = read_prompts(options)
    new_sampler = partial(
        Sampler,
        temperature=options.temperature,
        top_k=options.sample_top_k,
        top_p=options.sample_top_p,
    )
    new_sampler([])  # refuses invalid settings
    trace = None if options.trace is None else Trace(options.trace)
    path = find_checkpoint(options.ckpt_path, RunSettings(root=options.root))
    model, tokenizer = load_for_inference(path, options.trust)
    known = [encode_known(text, tokenizer, "--prompt", options.unknown) for text in prompts]
    wanted = samples(known, tokenizer, options.num_samples, options.seed)
    total = max(1, len(prompts)) * options.num_samples
    tell_checkpoint(path)
    keep_freed_memory()
    colours = None if options.show_experts is None else begin_colours(options.show_experts, model)
    # Whatever it was trained in: in bf16 a text would depend on what is sampled beside it.
    model.to(device, torch.float32)
    output, done = Output(), 0

    def new_writer(texts: Sequence[Growing]) -> InOrder:
        nonlocal done
        first, done = done, done + len(texts)
        if colours is None and trace is None:
            return InOrder([text.prompt() for text in texts], options.stop, output)
        shown = [text.prompt_by_token() for text in texts]
        ids, size = [text.sample.ids for text in texts], model.block_size
        writer = Read(shown, options.stop, output, ids, size, colours, trace, first)
        writer.on_read = taker(writer, model)
        return writer

    with trace or nullcontext():
        most = options.max_new_tokens
        for _ in grow(model, tokenizer, wanted, total, most, new_sampler, new_writer):
            pass
    output.close()
    return 0


def taker(writer: Read, model: MoETransformer) -> OnRead:
    """Passes what the model reads to `writer`, with routings by layer; None: a dense layer."""
    layers, count = list(model.routers()), len(model.blocks)

    def take(stream: int, ids: list[int], routings: list[Routing]) -> None:
        found = dict(zip(layers, routings, strict=True))
        writer.take(stream, ids, [found.get(layer) for layer in range(count)])

    return take


def begin_colours(layer: int, model: MoETransformer) -> Colours:
    """Return the colours of a layer's experts. Prints the legend, or why there are no colours."""
    if not 0 <= layer < len(model.blocks):
        raise UsageError(
            f"--show_experts {layer}: no such layer; give 0 to {len(model.blocks) - 1}"
        )
    if layer not in (routers := model.routers()):
        others = f"give {', '.join(map(str, routers))}" if routers else "no layer has one"
        raise UsageError(f"--show_experts {layer}: this layer is dense, without a router; {others}")
    why_not = why_no_colours()
    colours = Colours(layer, model.num_experts, on=why_not is None)
    print(colours.legend(why_not), file=sys.stderr)
    return colours


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Return all prompts, those of the command line first."""
    prompts = list(options.prompt)
    if (path := options.prompt_file) is not None:
        try:
            read = read_standard_input if path == STANDARD_INPUT else partial(read_whole, path)
            text = read(MOST_PROMPT_BYTES).decode().removeprefix("\ufeff")
            prompts.append(text.replace("\r\n", "\n").replace("\r", "\n"))
        except UnicodeDecodeError as error:
            raise DataError(f"--prompt_file {path}: not UTF-8 at byte {error.start}") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"--prompt_file {path}: {reason}") from error
    if "" in prompts:
        raise UsageError("a prompt is empty: omit it to start from a newline")
    return prompts
