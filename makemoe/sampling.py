"""Texts sampled from a model: prompts in, texts that grow out. Several are sampled together."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import islice
from typing import NamedTuple, Protocol

import torch

from makemoe.data.decoding import Decoder
from makemoe.data.tokenizer import Tokenizer
from makemoe.model.generate import OnRead, Sampler, steps
from makemoe.model.router import Routing
from makemoe.model.transformer import MoETransformer

MANY_STREAMS = 8
"""With this many streams or more, a second CPU thread pays off."""

GROUP = 64
"""Maximum number of streams sampled together; more are hardly faster per stream."""

GROUP_BYTES = 1 << 30
"""Maximum memory of a group, in bytes."""

GROUP_TOKENS = 1 << 20
"""Maximum number of tokens of a group; all texts but the first wait in memory."""


class Choice(NamedTuple):
    """The experts one layer chose for a token, largest weight first, and their weights."""

    experts: list[int]
    weights: list[float]

    def as_json(self) -> dict[str, list[int] | list[float]]:
        """With the digits that float32 has."""
        return {"experts": self.experts, "weights": [round(weight, 7) for weight in self.weights]}


def choices(routing: Routing) -> list[Choice | None]:
    """The choice of each token."""
    pairs = zip(routing.experts_NK.tolist(), routing.weights_NK.tolist(), strict=True)
    return [Choice(experts, weights) for experts, weights in pairs]


class Sample(NamedTuple):
    """A text to sample.

    Attributes:
        is_shown: whether the prompt is part of the text; a substitute for a missing one is not.
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
        """The prompt as shown; call it before tokens are added."""
        return "".join(self.prompt_in_parts([self.sample.ids]))

    def prompt_by_token(self) -> list[str]:
        """The text that each token of the shown prompt completes, instead of `prompt`."""
        return self.prompt_in_parts([[id] for id in self.sample.ids])

    def prompt_in_parts(self, parts: list[list[int]]) -> list[str]:
        """The text that each part of the shown prompt completes, instead of `prompt`."""
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


class Output(Protocol):
    """Where texts are written, one after another."""

    def begin_text(self) -> None:
        """Start the next text."""

    def write(self, text: str) -> None:
        """Write more of it."""


class InOrder:
    """Writes streams one after another while all of them grow.

    The first unfinished stream is written as it grows; the others wait for their turn. Text that
    may be the beginning of a stop text is held back.

    Args:
        beginnings: the beginning of each stream.
        stops: a stream ends before any of these texts.
        output: where the texts are written.

    Attributes:
        on_read: gets what the model reads, see `steps`; None: not needed.
    """

    on_read: OnRead | None = None

    def __init__(self, beginnings: Sequence[str], stops: Sequence[str], output: Output) -> None:
        self.stops, self.output = stops, output
        self.waiting = [StringIO() for _ in beginnings]  # final text of later streams
        self.doubtful = [""] * len(beginnings)
        self.ended = [False] * len(beginnings)
        self.current = 0
        for waiting, beginning in zip(self.waiting, beginnings, strict=True):
            waiting.write(beginning)
        self.begin()

    def add(self, stream: int, text: str) -> bool:
        """Append new text; return whether the stream has reached a stop text."""
        return self._grow(stream, text)

    def finish(self, stream: int, text: str) -> bool:
        """End a stream with its last text, which no token adds; return that it has ended."""
        if not self._grow(stream, text):
            self.ended[stream] = True
            self.pass_on(stream, self.doubtful[stream])
            self.advance()
        return True

    def _grow(self, stream: int, text: str) -> bool:
        new = self.doubtful[stream] + text
        found = [new.index(stop) for stop in self.stops if stop in new]
        if found:
            self.ended[stream] = True
            certain = min(found)
        else:
            certain = len(new) - self.may_begin_a_stop(new)
        self.doubtful[stream] = "" if found else new[certain:]
        self.pass_on(stream, new[:certain])
        self.advance()
        return self.ended[stream]

    def pass_on(self, stream: int, text: str) -> None:
        """Write final text, or store it until the stream's turn."""
        if stream == self.current:
            self.show(text)
        else:
            self.waiting[stream].write(text)

    def may_begin_a_stop(self, text: str) -> int:
        """Number of characters at the end of a text that may be the beginning of a stop text."""
        lengths = (
            n
            for stop in self.stops
            for n in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:n])
        )
        return max(lengths, default=0)

    def begin(self) -> None:
        """Start the current stream and write the text it already has."""
        self.output.begin_text()
        certain = self.waiting[self.current].getvalue()
        self.waiting[self.current] = StringIO()
        self.show(certain)

    def advance(self) -> None:
        """Continue with the next stream at the end of the current one."""
        while self.is_shown() and self.current + 1 < len(self.ended):
            self.current += 1
            self.begin()

    def is_shown(self) -> bool:
        """Whether the current stream has been written to its end."""
        return self.ended[self.current]

    def show(self, text: str) -> None:
        """Write more of the current stream."""
        self.output.write(text)

    def close(self) -> None:
        """Write the rest of all streams, which grow no more."""
        for stream in range(self.current, len(self.ended)):
            if not self.ended[stream]:
                self.ended[stream] = True
                self.pass_on(stream, self.doubtful[stream])
        self.advance()


def samples(
    prompts: Sequence[str], tokenizer: Tokenizer, count: int, seed: int
) -> Iterator[Sample]:
    """Yield the samples of each prompt, prompt by prompt; without prompts, of an empty one.

    The random numbers of a sample depend on the seed and on its number within its prompt.
    """
    for prompt in prompts or [""]:
        ids = tokenizer.prompt(prompt)
        for number in range(count):
            yield Sample(prompt != "", ids, seed + number)


def grow(
    model: MoETransformer,
    tokenizer: Tokenizer,
    wanted: Iterator[Sample],
    total: int,
    max_new_tokens: int,
    new_sampler: Callable[[Sequence[int]], Sampler],
    new_writer: Callable[[Sequence[Growing]], InOrder],
) -> Iterator[None]:
    """Sample texts in groups and write them; yield whenever more may have been written.

    A text ends before the end-of-text token of its tokenizer. While the caller has its turn, the
    number of CPU threads is its own.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        wanted: what to sample.
        total: how many these are.
        max_new_tokens: number of tokens to add to each.
        new_sampler: called with the seeds of a group.
        new_writer: called with the texts of a group.
    """
    for group in groups(wanted, total, group_size(model, max_new_tokens)):
        texts = [Growing(sample, tokenizer.decoder(), max_new_tokens) for sample in group]
        writer = new_writer(texts)
        yield
        sampler, ended = new_sampler([sample.seed for sample in group]), [False] * len(group)
        prompts = [sample.ids for sample in group]
        drawn = steps(model, prompts, max_new_tokens, sampler, ended, writer.on_read)
        while True:
            with threads_for(len(group), model):
                new = next(drawn, None)
            if new is None:
                break
            for b, token in new:
                if token == tokenizer.end_of_text:
                    ended[b] = writer.finish(b, texts[b].end())
                else:
                    ended[b] = writer.add(b, texts[b].add(token))
            yield
        writer.close()
        yield


@contextmanager
def threads_for(streams: int, model: MoETransformer) -> Iterator[None]:
    """Compute with one CPU thread if there are few streams, whose operations are small."""
    threads = torch.get_num_threads()
    if threads == 1 or streams >= MANY_STREAMS or model.head.weight.device.type != "cpu":
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
