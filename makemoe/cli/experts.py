"""Shows which experts process each token of a sampled text: as colours, and as JSON lines."""

import errno
import json
import os
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from makemoe.cli.writing import Output
from makemoe.colours import painted, palette
from makemoe.errors import DataError, UsageError
from makemoe.model.router import Routing
from makemoe.sampling import Choice, InOrder, choices


class Token(NamedTuple):
    """A token of a text and what each layer chose when the model read it.

    Attributes:
        id: its id.
        layers: None for a dense layer; empty for the part of a prompt that lies before the context
            and is never read.
    """

    id: int
    layers: list[Choice | None]


class Piece(NamedTuple):
    """A part of a text: the number of tokens that make it, and of characters it has.

    It has more than one token if the first ones complete no character.
    """

    tokens: int
    characters: int


class Read(InOrder):
    """Writes texts like `InOrder`, but each token only after the model has read and routed it.

    Args:
        beginnings: the text that each token of a stream's prompt completes; none if the prompt is
            a substitute, which is not part of the text.
        stops: a stream ends before any of these texts.
        output: where the texts are written.
        prompts: the ids the model starts with.
        block_size: the model reads the last `block_size` ids of a longer prompt.
        colours: how experts are shown, or None.
        trace: where experts are written, or None.
        first: the sample number of the first stream.
    """

    def __init__(
        self,
        beginnings: Sequence[Sequence[str]],
        stops: Sequence[str],
        output: Output,
        prompts: Sequence[Sequence[int]],
        block_size: int,
        colours: "Colours | None",
        trace: "Trace | None",
        first: int,
    ) -> None:
        self.colours, self.trace = colours, trace
        self.first, self.lengths = first, list(map(len, beginnings))
        self.read: list[deque[Token]] = [deque() for _ in prompts]
        self.pieces: list[deque[Piece]] = [deque() for _ in prompts]
        self.incomplete = [0] * len(prompts)  # tokens that complete no character yet
        self.hidden = [len(p) - length for p, length in zip(prompts, self.lengths, strict=True)]
        self.unread, self.position = "", 0
        for stream, prompt in enumerate(prompts):
            self.keep(stream, [Token(id, []) for id in prompt[:-block_size]])
            for text in beginnings[stream]:
                self.count(stream, text)
        super().__init__(list(map("".join, beginnings)), stops, output)

    def add(self, stream: int, text: str) -> bool:
        self.count(stream, text)
        return super().add(stream, text)

    def finish(self, stream: int, text: str) -> bool:
        if tokens := self.incomplete[stream]:
            self.pieces[stream].append(Piece(tokens, len(text)))
            self.incomplete[stream] = 0
        return super().finish(stream, text)

    def count(self, stream: int, text: str) -> None:
        """Note how many characters the next token of a stream completes."""
        self.incomplete[stream] += 1
        if text:
            self.pieces[stream].append(Piece(self.incomplete[stream], len(text)))
            self.incomplete[stream] = 0

    def take(self, stream: int, ids: list[int], routings: Sequence[Routing | None]) -> None:
        """Receive what the model has read.

        Args:
            stream: its number.
            ids: the tokens.
            routings: their routing in each layer; None: the layer is dense.
        """
        by_layer = [[None] * len(ids) if r is None else choices(r) for r in routings]
        self.keep(
            stream,
            [Token(id, [chosen[n] for chosen in by_layer]) for n, id in enumerate(ids)],
        )
        if stream == self.current:
            self.show("")
            self.advance()

    def keep(self, stream: int, tokens: list[Token]) -> None:
        """Store tokens until their text is final, without the substitute for a prompt."""
        hidden = min(self.hidden[stream], len(tokens))
        self.hidden[stream] -= hidden
        self.read[stream].extend(tokens[hidden:])

    def begin(self) -> None:
        self.unread, self.position = "", 0
        super().begin()

    def is_shown(self) -> bool:
        return super().is_shown() and not self.unread

    def show(self, text: str) -> None:
        self.unread += text
        read, pieces = self.read[self.current], self.pieces[self.current]
        while pieces and self.is_final(pieces[0]) and len(read) >= pieces[0].tokens:
            piece = pieces.popleft()
            part, self.unread = self.unread[: piece.characters], self.unread[piece.characters :]
            tokens = [read.popleft() for _ in range(piece.tokens)]
            for token, completed in zip(tokens, [*[""] * (len(tokens) - 1), part], strict=True):
                self.output.write(self.shown(completed, token))

    def is_final(self, piece: Piece) -> bool:
        """Whether the next piece of the current stream is final; a stop text may cut it short."""
        ended = self.ended[self.current] and self.unread != ""
        return ended or len(self.unread) >= piece.characters

    def shown(self, text: str, token: Token) -> str:
        """The text that a token completes, as it is printed. Writes it to the trace too."""
        if self.trace is not None:
            prompt = self.position < self.lengths[self.current]
            sample = self.first + self.current
            self.trace.write(sample, self.position, text, prompt, token)
        self.position += 1
        return text if self.colours is None else self.colours.paint(text, token)

    def close(self) -> None:
        for stream, tokens in enumerate(self.incomplete):
            if tokens and not self.ended[stream]:  # the last tokens have no text at all
                self.pieces[stream].append(Piece(tokens, 0))
        super().close()


class Colours:
    """Colours the text of each token by the token's first expert in one layer.

    Removing the escape codes gives back the text.

    Args:
        layer: number of the layer, from 0; it has a router.
        num_experts: number of experts in the layer.
        on: whether to colour; False leaves all text unchanged.
    """

    def __init__(self, layer: int, num_experts: int, on: bool) -> None:
        self.layer, self.on = layer, on
        self.colours = palette(num_experts)

    def paint(self, text: str, token: Token) -> str:
        """The text in the colour of the token's first expert."""
        if not self.on or not token.layers:
            return text
        choice = token.layers[self.layer]
        assert choice is not None
        return painted(text, self.colours[choice.experts[0]])

    def legend(self, why_not: str | None) -> str:
        """One line that says which colour is which expert, or why there are no colours."""
        if why_not is not None:
            return f"experts of layer {self.layer} not shown: {why_not}"
        experts = range(len(self.colours))
        if sys.stderr.isatty():
            shown = " ".join(painted(f" {expert} ", self.colours[expert]) for expert in experts)
        else:
            shown = ", ".join(f"{expert}: colour {self.colours[expert]}" for expert in experts)
        return f"first expert in layer {self.layer}: {shown}"


def without_waiting(path: str, flags: int) -> int:
    """Open a file; fail, instead of waiting, if it is a pipe that nothing reads."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


class Trace:
    """Writes one line of JSON per token. A line is written completely or not at all.

    Args:
        path: a new file; an existing pipe or device is accepted.

    Raises:
        UsageError: if the file exists.
        DataError: if it cannot be written.
    """

    def __init__(self, path: str) -> None:
        if os.path.isfile(path):
            raise UsageError(f"--trace {path} already exists; choose another file")
        self.path, self.size = path, 0

    def __enter__(self) -> "Trace":
        try:
            # Unbuffered, so that every line is in the file if the process is stopped.
            self.file = open(self.path, "ab", buffering=0, opener=without_waiting)
        except OSError as error:
            mend = "choose a new file in an existing folder"
            if error.errno == errno.ENXIO:
                mend = "nothing reads this pipe; start its reader first"
            raise DataError(f"--trace {self.path}: {error.strerror}; {mend}") from error
        os.set_blocking(self.file.fileno(), True)
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, sample: int, position: int, text: str, prompt: bool, token: Token) -> None:
        """Write one token of a sample, and the text that it completes."""
        line = {
            "sample": sample,
            "position": position,
            "token": token.id,
            "text": text,
            "prompt": prompt,
            "layers": [None if choice is None else choice.as_json() for choice in token.layers],
        }
        rest = whole = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        try:
            while rest:  # a full disk may accept only a part
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self.file.truncate(self.size)
            raise DataError(f"--trace {self.path}: {error.strerror}") from error
        self.size += len(whole)
