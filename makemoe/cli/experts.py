"""Shows which experts process each character of a sampled text: as colours, and as JSON lines."""

import errno
import json
import os
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from makemoe.cli.writing import InOrder, Output
from makemoe.errors import DataError, UsageError
from makemoe.model.router import Routing

FIRST_COLOURS = (21, 166, 121, 90, 220, 135, 212, 65)
"""Eight of the terminal's 256 colours, distinct in all common kinds of colour blindness."""

CUBE = range(16, 232)
"""The colours that are the same on all terminals: 6 levels each of red, green and blue."""

LEVELS = (0, 95, 135, 175, 215, 255)
RESET = "\x1b[0m"


class Choice(NamedTuple):
    """The experts one layer chose for a token, largest weight first, and their weights."""

    experts: list[int]
    weights: list[float]


class Character(NamedTuple):
    """A character of a text and what each layer chose when the model read it.

    Attributes:
        token: its id.
        layers: empty for the part of a prompt that lies before the context and is never read.
    """

    token: int
    layers: list[Choice]


class Read(InOrder):
    """Writes texts like `InOrder`, but each character only after the model has read and routed it.

    Args:
        beginnings: the beginning of each stream.
        stops: a stream ends before any of these texts.
        output: where the texts are written.
        prompts: the ids the model starts with; more than the beginning has characters if a
            substitute is used for a missing prompt.
        block_size: the model reads the last `block_size` ids of a longer prompt.
        colours: how experts are shown, or None.
        trace: where experts are written, or None.
        first: the sample number of the first stream.
    """

    def __init__(
        self,
        beginnings: Sequence[str],
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
        self.read: list[deque[Character]] = [deque() for _ in prompts]
        self.hidden = [len(p) - length for p, length in zip(prompts, self.lengths, strict=True)]
        self.unread, self.position = "", 0
        for stream, prompt in enumerate(prompts):
            self.keep(stream, [Character(id, []) for id in prompt[:-block_size]])
        super().__init__(beginnings, stops, output)

    def take(self, stream: int, ids: list[int], routings: list[Routing]) -> None:
        """Receive what the model has read; see `on_read` of `generate`."""
        by_layer = [(r.experts_NK.tolist(), r.weights_NK.tolist()) for r in routings]
        self.keep(
            stream,
            [
                Character(id, [Choice(experts[n], weights[n]) for experts, weights in by_layer])
                for n, id in enumerate(ids)
            ],
        )
        if stream == self.current:
            self.show("")
            self.advance()

    def keep(self, stream: int, characters: list[Character]) -> None:
        """Store characters until their text is final, without the substitute for a prompt."""
        hidden = min(self.hidden[stream], len(characters))
        self.hidden[stream] -= hidden
        self.read[stream].extend(characters[hidden:])

    def begin(self) -> None:
        self.unread, self.position = "", 0
        super().begin()

    def is_shown(self) -> bool:
        return super().is_shown() and not self.unread

    def show(self, text: str) -> None:
        text = self.unread + text
        read = self.read[self.current]
        count = min(len(text), len(read))
        self.unread = text[count:]
        for character in text[:count]:
            self.output.write(self.shown(character, read.popleft()))

    def shown(self, text: str, character: Character) -> str:
        """A character as it is printed. Writes it to the trace too."""
        if self.trace is not None:
            prompt = self.position < self.lengths[self.current]
            sample = self.first + self.current
            self.trace.write(sample, self.position, text, prompt, character)
        self.position += 1
        return text if self.colours is None else self.colours.paint(text, character)


class Colours:
    """Colours each character by its first expert in one layer.

    The colour is the background, so that spaces show it too. The character itself is black or
    white. Newlines are not coloured. Removing the escape codes gives back the text.

    Args:
        layer: number of the layer, from 0.
        num_experts: number of experts in the layer.
        on: whether to colour; False leaves all text unchanged.
    """

    def __init__(self, layer: int, num_experts: int, on: bool) -> None:
        self.layer, self.on = layer, on
        self.colours = palette(num_experts)

    def paint(self, text: str, character: Character) -> str:
        """The text in the colour of the character's first expert."""
        if not self.on or text in "\r\n" or not character.layers:
            return text
        return self.of_expert(character.layers[self.layer].experts[0], text)

    def of_expert(self, expert: int, text: str) -> str:
        """The text in an expert's colour."""
        colour = self.colours[expert]
        return f"\x1b[38;5;{ink_on(colour)};48;5;{colour}m{text}{RESET}"

    def legend(self, why_not: str | None) -> str:
        """One line that says which colour is which expert, or why there are no colours."""
        if why_not is not None:
            return f"experts of layer {self.layer} not shown: {why_not}"
        experts = range(len(self.colours))
        if sys.stderr.isatty():
            shown = " ".join(self.of_expert(expert, f" {expert} ") for expert in experts)
        else:
            shown = ", ".join(f"{expert}: colour {self.colours[expert]}" for expert in experts)
        return f"first expert in layer {self.layer}: {shown}"


def why_no_colours() -> str | None:
    """Why standard output is not coloured, or None if it is."""
    if os.environ.get("NO_COLOR"):
        return "NO_COLOR is set"
    if os.environ.get("FORCE_COLOR"):
        return None
    if not sys.stdout.isatty():
        return "standard output is not a terminal (FORCE_COLOR=1 forces colours)"
    if os.environ.get("TERM") == "dumb":
        return "TERM is dumb (FORCE_COLOR=1 forces colours)"
    return None


def palette(size: int) -> list[int]:
    """`size` colours: first the chosen ones, then always the one farthest from all before.

    If there are more experts than colours, colours repeat.
    """
    colours = list(FIRST_COLOURS)
    nearest = {c: min(distance(c, known) for known in colours) for c in CUBE}
    while len(colours) < min(size, len(CUBE)):
        farthest = max(CUBE, key=nearest.__getitem__)
        colours.append(farthest)
        nearest = {c: min(nearest[c], distance(c, farthest)) for c in CUBE}
    return [colours[expert % len(colours)] for expert in range(size)]


def rgb(colour: int) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour in the cube."""
    place = colour - CUBE.start
    return LEVELS[place // 36], LEVELS[place // 6 % 6], LEVELS[place % 6]


def distance(a: int, b: int) -> int:
    """Squared distance of two colours in red, green and blue."""
    return sum((x - y) ** 2 for x, y in zip(rgb(a), rgb(b), strict=True))


def luminance(colour: int) -> float:
    """Relative luminance of a colour in the cube, 0 black to 1 white (WCAG 2.2)."""
    linear = [
        c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb(colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(colour: int) -> int:
    """Black or white, whichever has more contrast: above 0.179 that is black."""
    return 16 if luminance(colour) > 0.179 else 231


def without_waiting(path: str, flags: int) -> int:
    """Open a file; fail, instead of waiting, if it is a pipe that nothing reads."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


class Trace:
    """Writes one line of JSON per character. A line is written completely or not at all.

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

    def write(self, sample: int, position: int, text: str, prompt: bool, read: Character) -> None:
        """Write one character of a sample."""
        layers = [
            {"experts": experts, "weights": [round(weight, 7) for weight in weights]}
            for experts, weights in read.layers
        ]
        line = {
            "sample": sample,
            "position": position,
            "token": read.token,
            "text": text,
            "prompt": prompt,
            "layers": layers,
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
