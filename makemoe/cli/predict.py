"""`makemoe predict`: samples text from a checkpoint; only the text goes to standard output."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch

from makemoe.checkpoint.inference import load_for_inference
from makemoe.cli.experts import Colours, Read, Trace, why_no_colours
from makemoe.cli.writing import InOrder, Output
from makemoe.data.decoding import Decoder
from makemoe.data.tokenizer import Tokenizer
from makemoe.data.unknown import encode_known
from makemoe.errors import DataError, UsageError
from makemoe.files import STANDARD_INPUT, read_standard_input, read_whole
from makemoe.model.generate import OnRead, Sampler, stream
from makemoe.model.router import Routing
from makemoe.model.transformer import MoETransformer
from makemoe.run import RunSettings, find_checkpoint, tell_checkpoint
from makemoe.training.memory import keep_freed_memory

MANY_STREAMS = 8
"""With this many streams or more, a second CPU thread pays off."""

GROUP = 64
"""Maximum number of streams sampled together; more are hardly faster per stream."""

GROUP_BYTES = 1 << 30
"""Maximum memory of a group, in bytes."""

GROUP_TOKENS = 1 << 20
"""Maximum number of tokens of a group; all texts but the first wait in memory."""

MOST_PROMPT_BYTES = 16 << 20


class Sample(NamedTuple):
    """A text to sample.

    Attributes:
        is_shown: whether the prompt is printed; a substitute for a missing one is not.
        ids: the prompt.
        seed: seed of its random numbers.
    """

    is_shown: bool
    ids: list[int]
    seed: int


class Growing:
    """The text of a sample, as its tokens come.

    Args:
        sample: the sample.
        decoder: a new one.
        tokens: number of tokens to add.
    """

    def __init__(self, sample: Sample, decoder: Decoder, tokens: int) -> None:
        self.sample, self.decoder, self.to_come = sample, decoder, tokens

    def prompt(self) -> str:
        """The prompt as printed; call it before tokens are added."""
        return "".join(self._prompt([self.sample.ids]))

    def prompt_by_token(self) -> list[str]:
        """The text that each token of the printed prompt completes, instead of `prompt`."""
        return self._prompt([[id] for id in self.sample.ids])

    def _prompt(self, parts: list[list[int]]) -> list[str]:
        texts = list(map(self.decoder.push, parts))
        return texts if self.sample.is_shown else []

    def add(self, token: int) -> str:
        """The text that a new token completes; after the last one, nothing is held back."""
        self.to_come -= 1
        text = self.decoder.push([token])
        return text if self.to_come else text + self.decoder.end()

    def end(self) -> str:
        """The text that is held back, if the sample ends before its last token."""
        return self.decoder.end()


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
    output, most_threads, done = Output(), torch.get_num_threads(), 0
    with trace or nullcontext():
        for group in groups(wanted, total, group_size(model, options.max_new_tokens)):
            if device == "cpu":
                torch.set_num_threads(1 if len(group) < MANY_STREAMS else most_threads)
            most = options.max_new_tokens
            texts = [Growing(sample, tokenizer.decoder(), most) for sample in group]
            writer: InOrder
            if colours is None and trace is None:
                writer = InOrder([text.prompt() for text in texts], options.stop, output)
            else:
                shown, ids = [text.prompt_by_token() for text in texts], [one.ids for one in group]
                size = model.block_size
                writer = Read(shown, options.stop, output, ids, size, colours, trace, done)
            sampler = new_sampler([sample.seed for sample in group])
            write(texts, model, most, sampler, writer, tokenizer.end_of_text)
            done += len(group)
    output.close()
    return 0


def write(
    texts: Sequence[Growing],
    model: MoETransformer,
    max_new_tokens: int,
    sampler: Sampler,
    writer: InOrder,
    end_of_text: int | None = None,
) -> None:
    """Sample texts together, and write each as it grows; one ends before the end of a text."""

    def add(b: int, token: int) -> bool:
        if token == end_of_text:
            writer.finish(b, texts[b].end())
            return True
        return writer.add(b, texts[b].add(token))

    stream(
        model,
        [text.sample.ids for text in texts],
        max_new_tokens,
        sampler,
        add,
        taker(writer, model) if isinstance(writer, Read) else None,
    )
    writer.close()


def taker(writer: Read, model: MoETransformer) -> OnRead:
    """Passes what the model reads to `writer`, with routings by layer; None: a dense layer."""
    layers, count = list(model.routers()), len(model.blocks)

    def take(stream: int, ids: list[int], routings: list[Routing]) -> None:
        found = dict(zip(layers, routings, strict=True))
        writer.take(stream, ids, [found.get(layer) for layer in range(count)])

    return take


def samples(
    prompts: Sequence[str], tokenizer: Tokenizer, count: int, seed: int
) -> Iterator[Sample]:
    """Yield the samples of each prompt, prompt by prompt.

    The random numbers of a sample depend on the seed and on its number within its prompt.
    """
    for prompt in prompts or [""]:
        ids = tokenizer.prompt(prompt)
        for number in range(count):
            yield Sample(prompt != "", ids, seed + number)


def groups(wanted: Iterator[Sample], total: int, most: int) -> Iterator[list[Sample]]:
    """Yield groups to sample together: all samples if they fit, else the first alone and the rest.

    By itself, the first sample appears several times as fast as in a group.
    """
    group = list(islice(wanted, total if total <= most else 1))
    while group:
        yield group
        group = list(islice(wanted, most))


def group_size(model: MoETransformer, max_new_tokens: int) -> int:
    """Maximum number of streams to sample together."""
    floats = 2 * len(model.blocks) * model.n_embd + model.vocab_size  # cache, and a prompt's logits
    by_memory = GROUP_BYTES // (4 * floats * model.block_size)
    return max(1, min(GROUP, by_memory, GROUP_TOKENS // max_new_tokens))


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


def find_device(name: str) -> str:
    """Return the device with this name, or the best one for `auto`.

    Raises:
        UsageError: if this machine does not have it.
    """
    if name == "auto":
        here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return next((device for device, is_here in here.items() if is_here), "cpu")
    try:
        torch.zeros(1, device=name).item()  # fails on a device that exists in name only
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name} is not available on this machine: try --device cpu"
        ) from error
    return name


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Return all prompts, those of the command line first."""
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
        raise UsageError("a prompt is empty: omit it to start a new text")
    return prompts
