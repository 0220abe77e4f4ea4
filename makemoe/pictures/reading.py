"""Draws how a text is read: the weight of each expert, token by token."""

from collections.abc import Sequence

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from makemoe.pictures.routing import MOST_PIXELS, TALLEST, layer_names
from makemoe.pictures.sheet import HEADER, MARGIN, SMALL, WIDEST, WORDS, Floats, Scale, Sheet
from makemoe.pictures.symbols import is_character, label

COLOURS = LinearSegmentedColormap.from_list(
    "reading", ["#edf0f6", "#b3c3e0", "#8c88c0", "#8a3d9c", "#4a0a52"]
)
"""From light, so that the cells of experts that are not chosen stay in the background, to dark."""

LETTER = 9
"""Width reserved for a letter of a token's label, in pixels."""

NARROW, BETWEEN = 16, 10
"""Minimum width of a cell, and the height between two layers, in pixels."""

LOW, HIGH = 2, 14
"""Minimum and maximum height of a cell, in pixels: lower if a line would be taller than a page."""

LEFT, DIGIT = 84, 8
"""Width of the names of layers and experts, and of each further digit of these, in pixels."""

ABOVE = 30
"""Height of the tokens above their cells, in pixels."""


def draw_reading(
    shares_LNE: Floats, symbols: Sequence[str], layers: Sequence[int] | None = None
) -> Figure:
    """Draw the weights of all experts for each token of a text.

    The tokens run from left to right, in as many lines as they need and the picture has room for.
    Below each line there is a block per layer, with a row per expert.

    Args:
        shares_LNE: weights, which sum to 1 over the experts of a token; 0 for those not chosen.
        symbols: the N tokens.
        layers: the numbers of the L layers; None: all from 0.

    Raises:
        ValueError: if there are too many experts for a picture.
    """
    L, N, E = shares_LNE.shape
    names, labels = layer_names(L, layers), list(map(label, symbols))
    left = LEFT + DIGIT * max(0, len(str(E - 1)) - 2)
    wide = max([NARROW, *(LETTER * len(name) for name in labels)])
    room = TALLEST - HEADER - ABOVE - (L + 1) * BETWEEN
    high = max(LOW, min(HIGH, room // max(1, L * E)))
    gap = int(high > 2 * LOW)
    block = E * high + BETWEEN
    line = ABOVE + L * block + BETWEEN
    most, fitting = (WIDEST - left - MARGIN) // wide, max(1, (TALLEST - HEADER) // line)
    if (HEADER + line) * WIDEST > MOST_PIXELS:
        raise ValueError(f"{L} layers of {E} experts are too many for a picture: draw some layers")
    lines = in_lines(symbols[: most * fitting], most)[:fitting]
    left_out = N - sum(map(len, lines))
    kind = "character" if all(map(is_character, symbols)) else "token"
    sheet = Sheet(
        left + max(map(len, lines), default=0) * wide + MARGIN,
        HEADER + len(lines) * line + (2 * BETWEEN if left_out else 0),
        f"Which experts read each {kind}",
        "Weight of each expert's output in the sum that a layer passes on.",
        Scale(even=0.5, most=1.0, colours=COLOURS),
        "0: not chosen; 1: the only one",
    )
    for number, tokens in enumerate(lines):
        top = HEADER + number * line
        for column, token in enumerate(tokens):
            x = left + (column + 0.5) * wide
            sheet.text(x, top + ABOVE - 12, labels[token], WORDS, ha="center")
        for row in range(L):
            y = top + ABOVE + row * block
            cells_EN = shares_LNE[row, tokens.start : tokens.stop].T
            sheet.cells(left, y, cells_EN, wide, high, gap)
            sheet.text(MARGIN, y + E * high / 2, names[row], SMALL)
            sheet.number_rows(left, y, E, high)
    if left_out:
        words = f"Not shown, without room: the last {left_out:,} {kind}s."
        sheet.text(MARGIN, sheet.height - 2 * BETWEEN, words)
    return sheet.finish()


def in_lines(symbols: Sequence[str], most: int) -> list[range]:
    """Lines of at most `most` tokens: as few as possible, and then as even as possible."""
    lines = broken(symbols, most)
    narrower = (broken(symbols, columns) for columns in range(1, most))
    return next((even for even in narrower if len(even) == len(lines)), lines)


def broken(symbols: Sequence[str], most: int) -> list[range]:
    """Lines of at most `most` tokens, each broken between two words where that is possible."""
    lines, begin = [], 0
    while begin < len(symbols):
        end = min(begin + most, len(symbols))
        if end < len(symbols):
            ends = (i for i in range(end, begin, -1) if is_between(symbols[i - 1], symbols[i]))
            end = next(ends, end)
        lines.append(range(begin, end))
        begin = end
    return lines


def is_between(before: str, after: str) -> bool:
    """Whether a word begins with `after`: a token may have the space before its word."""
    return before[-1:].isspace() or (after[:1].isspace() and not after.isspace())
