"""A page laid out in pixels: blocks of coloured cells with text beside them.

Matplotlib's own axes and layout take seconds for this many labels and give cells of unequal size;
here every cell has the same whole number of pixels.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from numpy.typing import NDArray

Floats = NDArray[np.floating]

DPI = 100
FONT_FILE = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
"""Shipped with matplotlib; covers more scripts than most fonts."""

TITLE, WORDS, SMALL = 17, 13, 11
"""Letter heights, in pixels."""

MARGIN = 16
HEADER = 112
"""Height reserved for title, explanation and scale, in pixels."""

NARROWEST, WIDEST = 760, 1600
NOTHING = np.array([225, 225, 225, 255], np.uint8)
"""Grey, which the colour map does not contain, for missing values."""


class Scale:
    """Maps values from 0 to `most` to colours, with `even` in the middle.

    The colours differ in lightness as well as in hue, so they survive colour blindness and
    greyscale printing. position = (value / most) ** gamma, where gamma puts `even` at 1/2.

    Args:
        even: the value in the middle.
        most: the largest value.
        colours: a colour map, or the name of one of matplotlib's; in the usual one, darker means
            less.
    """

    STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)

    def __init__(self, even: float, most: float, colours: str | Colormap = "viridis") -> None:
        self.even, self.most = even, most
        self.gamma = math.log(0.5) / math.log(even / most) if even < most else 1.0
        self.colours = colormaps[colours] if isinstance(colours, str) else colours

    def colour(self, values: Floats) -> NDArray[np.uint8]:
        """RGBA bytes of values, (..., 4); values above `most` are clipped, NaN becomes NOTHING."""
        rgba: NDArray[np.uint8] = self.colours(self.position(values), bytes=True)
        return np.where(np.isnan(values)[..., None], NOTHING, rgba)

    def position(self, values: Floats) -> Floats:
        """Position of values on the colour scale, from 0 (darkest) to 1."""
        position: Floats = (np.minimum(values, self.most) / self.most) ** self.gamma
        return position

    def value(self, position: float) -> float:
        """The value at a position of the colour scale, from 0 to 1."""
        return float(self.most * position ** (1 / self.gamma))


class Pixels(Artist):
    """Draws pixels as a figure's background; matplotlib's images take ten times as long."""

    zorder = -1

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        super().__init__()
        self.pixels = pixels

    def draw(self, renderer: RendererBase) -> None:
        """Copy the pixels."""
        context = renderer.new_gc()
        renderer.draw_image(context, 0, 0, self.pixels[::-1])  # rows count from the bottom
        context.restore()


class Sheet:
    """A white page of `width` x `height` pixels, with a header; y counts from the top."""

    def __init__(
        self, width: int, height: int, title: str, explanation: str, scale: Scale, unit: str
    ) -> None:
        self.width, self.height, self.scale = max(width, NARROWEST), height, scale
        self.pixels = np.full((self.height, self.width, 4), 255, np.uint8)
        size = (self.width / DPI, self.height / DPI)
        self.figure = Figure(size, dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.text(MARGIN, 24, title, TITLE)
        self.text(MARGIN, 48, explanation, WORDS)
        self._draw_scale(MARGIN, 66, unit)

    def _draw_scale(self, x: int, y: int, unit: str, width: int = 240) -> None:
        ramp = [self.scale.value(i / (width - 1)) for i in range(width)]
        self.cells(x, y, np.array([ramp]), 1, 14)
        for stop in Scale.STOPS:
            at = x + round(stop * (width - 1))
            self.pixels[y + 14 : y + 18, at] = (0, 0, 0, 255)
            # The outer labels are aligned inwards to stay on the page.
            ha = {0.0: "left", 1.0: "right"}.get(stop, "center")
            self.text(at, y + 25, f"{self.scale.value(stop):.2g}", SMALL, ha)
        self.text(x + width + 12, y + 7, unit, WORDS)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = SMALL,
        ha: str = "left",
        color: str = "black",
    ) -> None:
        """Draw text centred vertically at y; math is not parsed."""
        self.figure.text(
            x / self.width,
            1 - (y + 0.36 * size) / self.height,
            words,
            ha=ha,
            va="baseline",
            fontproperties=FontProperties(fname=FONT_FILE, size=size * 72 / DPI),
            parse_math=False,
            color=color,
        )

    def cells(self, x: int, y: int, values: Floats, wide: int, high: int, gap: int = 0) -> None:
        """Draw a block of cells, one per value of (rows, columns), with its corner at (x, y).

        The last `gap` pixels of each cell, below and on the right, stay white.
        """
        block = self.scale.colour(values).repeat(high, 0).repeat(wide, 1)
        for i in range(gap):
            block[high - 1 - i :: high] = block[:, wide - 1 - i :: wide] = 255
        self.pixels[y : y + len(block), x : x + block.shape[1]] = block

    def number_columns(self, x: int, y: int, columns: int, wide: int) -> None:
        """Number the columns of a block, as many as fit."""
        for column in spaced(columns, wide, SMALL * len(str(columns - 1)) * 3 // 4 + 3):
            self.text(x + (column + 0.5) * wide, y, str(column), ha="center")

    def number_rows(self, x: int, y: int, rows: int, high: int) -> None:
        """Number the rows of a block, as many as fit."""
        for row in spaced(rows, high, SMALL):
            self.text(x - 4, y + (row + 0.5) * high, str(row), ha="right")

    def finish(self) -> Figure:
        """Return the figure."""
        self.figure.add_artist(Pixels(self.pixels))
        return self.figure


def spaced(count: int, size: int, room: int) -> Iterable[int]:
    """Indices of `count` items of `size` pixels to label, if a label needs `room` pixels."""
    every = 1
    while every * size < room:
        every *= 2
    return range(0, count, every)


class Panels:
    """Positions of `count` equal panels in rows on a page, with space for their labels.

    Args:
        count: number of panels.
        width: width of a panel, in pixels.
        height: height of a panel, in pixels.
        left: space left of the first panel of a row.
        right: space right of the last panel of a row.
        between: space between two panels of a row.
        above: space above each row.
    """

    def __init__(
        self,
        count: int,
        width: int,
        height: int,
        left: int,
        right: int = MARGIN,
        between: int = 40,
        above: int = 44,
    ) -> None:
        self.count, self.width, self.height = count, width, height
        self.left, self.between, self.above = left, between, above
        room = WIDEST - left - right + between
        self.per_row = max(1, min(count, room // (width + between)))
        # Fill the same number of rows evenly: 4 and 4 rather than 6 and 2.
        self.rows = -(-count // self.per_row)
        self.per_row = -(-count // self.rows)
        self.total_width = left + self.per_row * (width + between) - between + right
        self.total_height = self.rows * (height + above)

    def place(self, number: int, top: int) -> tuple[int, int]:
        """The corner of a panel; the space of the first row starts at `top`."""
        row, column = divmod(number, self.per_row)
        return (
            self.left + column * (self.width + self.between),
            top + row * (self.height + self.above) + self.above,
        )
