"""What is written and drawn on a sheet."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from makemoe.pictures.sheet import DPI


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def pixels(figure: Figure) -> NDArray[np.uint8]:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]


def check_legible(figure: Figure) -> None:
    """Every word is large enough, on the sheet, and over no other."""
    width, height = figure.canvas.get_width_height()
    boxes = np.array([text.get_window_extent().extents for text in figure.texts])
    x0, y0, x1, y1 = boxes.T
    assert x0.min() >= 0
    assert y0.min() >= 0
    assert x1.max() <= width
    assert y1.max() <= height
    smallest = min(text.get_fontsize() for text in figure.texts)
    assert smallest * DPI / 72 >= 6 * 96 / 72  # pixels of 6 pt on a usual screen
    # Boxes hold room above and below the letters.
    middle, half = (y0 + y1) / 2, 0.35 * (y1 - y0)
    beside = (x1[:, None] <= x0) | (x0[:, None] >= x1)
    apart = abs(middle[:, None] - middle) >= half[:, None] + half
    clashes = np.argwhere(~(beside | apart | np.eye(len(boxes), dtype=bool)))
    assert not [(words(figure)[i], words(figure)[j]) for i, j in clashes]
