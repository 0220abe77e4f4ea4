"""Draw a sampled text with each character on the colour of its token's expert, as in the README.

    makemoe predict --ckpt_path best --prompt "ROMEO:" --trace routing.jsonl
    python -m benchmarks.coloured_text routing.jsonl text.png --layers 0 5

The colour is that of the first choice, the expert with the largest weight in the layer. The prompt
is bold. `predict --show_experts` shows the same in a terminal, with the terminal's colours. Beside
the picture, it prints for each layer how far the character alone decides which expert reads it.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from benchmarks.scripts import Options, run
from makemoe.errors import DataError, UsageError

PROG = "python -m benchmarks.coloured_text"
FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
REGULAR, BOLD = "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"
COLOURS = (
    *("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00"),
    "#DDDDDD",
)
"""Paul Tol's light scheme: cells under black text that stay apart for the colour-blind."""

DPI = 100
WIDE, HIGH = 14, 27
"""Of a character's cell, pixels."""

MARGIN, BETWEEN, HEADER, FOOTER = 28, 44, 116, 28
LETTER, WORDS, TITLE = 20, 17, 23
"""Font sizes, pixels."""


class Character(NamedTuple):
    """A character of a sample.

    Attributes:
        text: the character.
        prompt: whether the prompt holds it.
        experts: its first expert per layer; None for a dense layer.
        sample: number of the sample.
    """

    text: str
    prompt: bool
    experts: list[int | None]
    sample: int = 0


def read_trace(path: Path) -> list[Character]:
    """The characters of a trace (docs/guide.md); those that no expert read are left out.

    Raises:
        DataError: if it is not a trace, or no expert read a character of it.
    """
    try:
        lines = list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
        text = [
            Character(
                letter,
                line["prompt"],
                [None if layer is None else layer["experts"][0] for layer in line["layers"]],
                line["sample"],
            )
            for line in lines
            if any(line["layers"])
            for letter in line["text"]
        ]
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} is not a trace: use a file of makemoe predict --trace") from error
    if not text:
        raise DataError(f"{path} has no character that an expert read: sample a longer text")
    return text


def usual_share(text: Sequence[Character], layer: int) -> float:
    """Share of the characters that are read by the expert which reads that character most often."""
    experts: dict[str, Counter[int | None]] = defaultdict(Counter)
    for character in text:
        experts[character.text][character.experts[layer]] += 1
    return sum(max(found.values()) for found in experts.values()) / len(text)


def rows_of(text: Sequence[Character], columns: int) -> list[list[Character]]:
    """The text in rows: one per line of it, longer lines broken at a space where there is one."""
    rows: list[list[Character]] = [[]]
    for character in text:
        if len(rows[-1]) >= columns and character.text != "\n":
            spaces = [i for i, c in enumerate(rows[-1]) if c.text == " "]
            cut = spaces[-1] + 1 if spaces and character.text != " " else columns
            rows.append(rows[-1][cut:])
            del rows[-2][cut:]
        rows[-1].append(character)
        if character.text == "\n":
            rows.append([])
    return [row for row in rows if row]


def experts_of(text: Sequence[Character]) -> set[int]:
    """All experts that are a first choice in any layer."""
    return {expert for c in text for expert in c.experts if expert is not None}


def draw(text: Sequence[Character], layers: Sequence[int], columns: int, title: str) -> Figure:
    """The text once per layer, side by side.

    Args:
        text: with one first expert per layer each.
        layers: which to show, 0 the first.
        columns: characters per row.
        title: of the picture.
    """
    num_experts = 1 + max(experts_of(text))
    rows = rows_of(text, columns)
    panel = columns * WIDE
    width = 2 * MARGIN + len(layers) * (panel + BETWEEN) - BETWEEN
    height = HEADER + len(rows) * HIGH + FOOTER
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, words: str, size: int, font: str, ha: str, ink: str) -> None:
        properties = FontProperties(fname=str(FONTS / font), size=size * 72 / DPI)
        place = {"ha": ha, "va": "baseline", "parse_math": False, "color": ink}
        where = (x / width, 1 - (y + 0.36 * size) / height)
        figure.text(*where, words, fontproperties=properties, **place)

    def fill(x: float, y: float, wide: float, high: float, colour: str) -> None:
        corner = (x / width, 1 - (y + high) / height)
        cell = Rectangle(corner, wide / width, high / height, color=colour, lw=0, antialiased=False)
        figure.add_artist(cell)

    write(MARGIN, 36, title, TITLE, "DejaVuSans-Bold.ttf", "left", "black")
    legend = width - MARGIN - num_experts * 40
    write(legend - 12, 36, "expert", WORDS, "DejaVuSans.ttf", "right", "black")
    for number in range(num_experts):
        x = legend + number * 40
        fill(x, 20, 36, 32, COLOURS[number])
        write(x + 18, 36, str(number), WORDS, "DejaVuSans.ttf", "center", "black")
    for number, layer in enumerate(layers):
        left = MARGIN + number * (panel + BETWEEN)
        name = f"layer {layer} (of 0 to {len(text[0].experts) - 1})"
        write(left, 88, name, WORDS, "DejaVuSans.ttf", "left", "#444444")
        for row, characters in enumerate(rows):
            y = HEADER + row * HIGH
            for column, character in enumerate(characters):
                x = left + column * WIDE
                expert = character.experts[layer]
                assert expert is not None
                fill(x, y + 1, WIDE, HIGH - 2, COLOURS[expert])
                newline = character.text == "\n"
                shown, ink = ("⏎", "#666666") if newline else (character.text, "black")
                font = BOLD if character.prompt else REGULAR
                write(x + WIDE / 2, y + HIGH / 2, shown, LETTER, font, "center", ink)
    return figure


def main() -> None:
    """Draw the first sample of a trace, and print what all of them have."""
    parser = Options(PROG, description="Draw a text, each character on the colour of its expert.")
    parser.add_argument("trace", type=Path, help="written by makemoe predict --trace")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--layers", type=int, nargs="+", default=[0], help="0 is the first")
    parser.add_argument("--columns", type=int, default=50, help="characters per row (%(default)s)")
    parser.add_argument("--title", default="Each character in the colour of its expert")
    options = parser.parse_args()
    text = read_trace(options.trace)
    check(options.layers, options.columns, options.picture, text)
    first = [character for character in text if character.sample == 0]
    draw(first, options.layers, options.columns, options.title).savefig(options.picture)
    for layer in options.layers:
        share = f"{usual_share(text, layer):.0%} of {len(text):,} characters"
        print(f"layer {layer}: {share} are read by the expert that reads that character most often")


def check(layers: Sequence[int], columns: int, picture: Path, text: Sequence[Character]) -> None:
    """Raise UsageError for what cannot be drawn."""
    last = min(len(character.experts) for character in text) - 1
    for layer in layers:
        if not 0 <= layer <= last:
            raise UsageError(f"--layers {layer} is out of range: the trace has layers 0 to {last}")
        if text[0].experts[layer] is None:
            raise UsageError(f"--layers {layer} is dense: choose a layer that has a router")
    if columns < 1:
        raise UsageError(f"--columns {columns} is too small: use 1 or more")
    if picture.suffix != ".png":
        raise UsageError(f"picture {picture} is not a PNG file: use a name that ends in .png")
    if max(experts_of(text)) >= len(COLOURS):
        raise UsageError(f"{len(COLOURS)} experts have colours, and the trace has more")


if __name__ == "__main__":
    run(PROG, main)
