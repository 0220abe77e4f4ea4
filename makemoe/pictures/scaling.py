"""Draws how efficiency changes with the number of devices: a panel per network."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from makemoe.pictures.compared import JOINS, NARROWEST, Line, label_ends, look, widest
from makemoe.pictures.sheet import DPI

HEIGHT = 3.6
"""Of a panel, in inches."""

HEADER, FOOTER, BETWEEN = 0.9, 0.55, 0.65
"""Heights above the first panel, below the last one, and between two, in inches."""


class Panel(NamedTuple):
    """The lines for one way to connect the devices.

    Attributes:
        title: the connection.
        lines: by strategy, numbers of devices with the efficiency on them; empty: it never fits.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[int, float]]]


def draw_scaling(title: str, panels: Sequence[Panel]) -> Figure:
    """Draw efficiency over the number of devices, each with as many tokens, in powers of two.

    Each line ends with its name and its last efficiency. A strategy that fits no number of devices
    is named below the title of its panel.
    """
    heights = HEADER + FOOTER + len(panels) * HEIGHT + (len(panels) - 1) * BETWEEN
    figure = Figure((11, heights), dpi=DPI)
    FigureCanvasAgg(figure)
    every = figure.subplots(len(panels), squeeze=False)[:, 0]
    # A strategy has the same colour in all panels.
    numbers = {name: n for n, name in enumerate(dict.fromkeys(n for p in panels for n in p.lines))}
    drawn = [{name: line for name, line in panel.lines.items() if line} for panel in panels]
    labels = [[f"{line[-1][1]:.0%}  {name}" for name, line in lines.items()] for lines in drawn]
    room = widest(figure, [label for one in labels for label in one])
    figure.subplots_adjust(
        left=0.07,
        right=max(NARROWEST, 0.07 + (0.98 - 0.07 - room) / JOINS[-1]),
        top=1 - HEADER / heights,
        bottom=FOOTER / heights,
        hspace=BETWEEN / HEIGHT,
    )
    figure.text(0.07, 1 - 0.3 / heights, f"Predicted efficiency: {title}", fontsize=13)
    explained = "share of a step in which products are computed"
    figure.text(0.07, 1 - 0.5 / heights, explained, fontsize=9, color="0.35")
    for axes, panel, lines, ends in zip(every, panels, drawn, labels, strict=True):
        curves = []
        for name, line in lines.items():
            devices, shares = np.array(line, float).T
            curves.append(Line(np.log2(devices), shares, np.zeros(len(line))))
            axes.plot(curves[-1].x, shares, ms=3.5, lw=1.6, **look(numbers[name]))
        missing = [name for name in panel.lines if name not in lines]
        never = f"; does not fit: {', '.join(missing)}" if missing else ""
        axes.set_title(f"{panel.title}{never}", fontsize=9.5, loc="left", color="0.25")
        most = max((curve.x[-1] for curve in curves), default=1.0)
        axes.set_xlim(0.9, 1.012 * most)
        ticks = np.arange(1, most + 1)
        axes.set_xticks(ticks, [f"{1 << int(tick):,}" for tick in ticks])
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if curves:
            label_ends(axes, curves, ends, [numbers[name] for name in lines])
    every[-1].set_xlabel("devices, each with the same number of tokens", fontsize=9)
    return figure
