"""Draws the learning curves of several variants: mean and band over seeds."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from makemoe.pictures.sheet import DPI, Floats
from makemoe.pictures.symbols import glyphs

# Okabe and Ito's palette for all kinds of colour vision, without its yellow, which is too light for
# a line. When the colours have been used up, the next line style begins them again.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX"

GAP = 0.045
"""Least distance of two labels, as a share of the picture's height."""

JOINS = (1.015, 1.03, 1.055, 1.08, 1.09)
"""Where the line to a label bends, its sample begins, has its marker and ends, and where the label
begins; in widths of the curves."""

SKIPPED = 0.25
"""Share of the validations, from the first, whose losses may lie above the picture."""

LONGEST = 56
"""Longest name beside a line."""

NEAREST = 0.01
"""Least height of the range of losses, in nats."""

LABEL: dict[str, Any] = {"va": "center", "fontsize": 8.5, "parse_math": False}
NARROWEST = 0.3
"""Least width of the curves, as a share of the picture's."""

AXES = {
    "tokens": "tokens seen in training",
    "flops": "floating-point operations spent on training",
}


Unit = Literal["nats per token", "bits per byte"]


class Compared(NamedTuple):
    """The curves of a variant.

    Attributes:
        name: its name.
        per_step: what the horizontal axis counts, per step.
        curves: steps and validation losses of each seed.
    """

    name: str
    per_step: int
    curves: Sequence[Sequence[tuple[int, float]]]


class Line(NamedTuple):
    """Mean and spread of a variant at the steps that all its seeds have."""

    x: Floats
    mean: Floats
    spread: Floats


def draw_compared(
    compared: Sequence[Compared],
    equal: Literal["tokens", "flops"],
    seeds: int,
    unit: Unit = "nats per token",
) -> Figure:
    """Draw validation losses over tokens or floating-point operations.

    Each line ends with its name and its last mean. What only the first validations
    reach is above the picture, so that the ends can be told apart.

    Args:
        compared: the variants.
        equal: what the horizontal axis counts.
        seeds: number of seeds, for the title.
        unit: of the losses.
    """
    lines = [line_of(one) for one in compared]
    labels = [
        f"{x.mean[-1]:.4f}  {shortened(o.name)}" for o, x in zip(compared, lines, strict=True)
    ]
    figure = Figure((11, 5.6), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # So that the longest label ends where the picture does.
    right = 0.07 + (0.98 - 0.07 - widest(figure, labels)) / JOINS[-1]
    figure.subplots_adjust(left=0.07, right=max(NARROWEST, right), top=0.88, bottom=0.11)
    band = f"mean and sample standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    figure.text(0.07, 0.945, "Exact validation loss", fontsize=13)
    figure.text(0.07, 0.905, band, fontsize=9, color="0.35")
    for number, line in enumerate(lines):
        axes.plot(line.x, line.mean, ms=3.5, lw=1.6, **look(number))
        axes.fill_between(
            line.x,
            line.mean - line.spread,
            line.mean + line.spread,
            color=look(number)["color"],
            alpha=0.16,
            lw=0,
        )
    axes.set_ylim(*limits(lines))
    axes.set_xlim(0, 1.012 * max(line.x[-1] for line in lines))
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel(AXES[equal], fontsize=9)
    axes.set_ylabel(f"validation loss, {unit}", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    label_ends(axes, lines, labels)
    return figure


def widest(figure: Figure, labels: Sequence[str]) -> float:
    """Width of the longest label as it will be drawn, as a share of the picture's."""
    texts = [figure.text(0, 0, label, **LABEL) for label in labels]
    width = max((text.get_window_extent().width for text in texts), default=0)
    for text in texts:
        text.remove()
    return float(width) / float(figure.bbox.width)


def label_ends(
    axes: Axes, lines: Sequence[Line], labels: Sequence[str], looks: Sequence[int] | None = None
) -> None:
    """Write a label beside the end of each line, joined to it; no two overlap.

    Args:
        axes: where the lines are drawn.
        lines: the lines.
        labels: their labels.
        looks: the numbers of their looks; None: from 0.
    """
    low, high = axes.get_ylim()
    places = [float(line.mean[-1] - low) / (high - low) for line in lines]
    left, most = axes.get_xlim()
    for number, height in enumerate(spaced(places, min(GAP, 1 / len(lines)))):
        end = (lines[number].x[-1] - left) / (most - left)
        seen = look(number if looks is None else looks[number])
        joined = {"transform": axes.transAxes, "clip_on": False, "color": seen["color"]}
        bend, begin, middle, stop, text = JOINS
        axes.plot((end, bend, begin), (places[number], height, height), lw=0.8, **joined)
        axes.plot((begin, stop), (height, height), lw=1.6, ls=seen["ls"], **joined)
        axes.plot(middle, height, ls="", ms=4, marker=seen["marker"], **joined)
        axes.text(text, height, labels[number], transform=axes.transAxes, **LABEL)


def line_of(compared: Compared) -> Line:
    """Mean and sample standard deviation at the steps that all seeds have."""
    curves = [dict(curve) for curve in compared.curves]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    losses = np.array([[curve[step] for step in steps] for curve in curves])
    spread = losses.std(0, ddof=1) if len(curves) > 1 else np.zeros(len(steps))
    return Line(np.array(steps, float) * compared.per_step, losses.mean(0), spread)


def limits(lines: Sequence[Line]) -> tuple[float, float]:
    """The range of losses that is shown."""
    low = min(float((line.mean - line.spread).min()) for line in lines)
    tops = [(line.mean + line.spread)[int(SKIPPED * len(line.x)) :] for line in lines]
    high = max(float(top.max()) for top in tops)
    room = max(0.06 * (high - low), (NEAREST - (high - low)) / 2)
    return low - room, high + room


def spaced(places: Sequence[float], gap: float) -> list[float]:
    """Places moved apart until neighbours have the gap, in the same order and as near as can be."""
    order = sorted(range(len(places)), key=places.__getitem__)
    groups: list[
        tuple[float, int]
    ] = []  # of neighbours that touch: their lowest place, their count
    for index in order:
        low, count = places[index], 1
        while groups and groups[-1][0] + groups[-1][1] * gap > low:
            below, more = groups.pop()
            # The mean of what its members ask for.
            low = (below * more + (low - more * gap) * count) / (more + count)
            count += more
        groups.append((low, count))
    found = [low + place * gap for low, count in groups for place in range(count)]
    return [found[order.index(index)] for index in range(len(places))]


def look(number: int) -> dict[str, Any]:
    """Colour, line style and marker of a line."""
    style = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "ls": STYLES[style % len(STYLES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def shortened(name: str) -> str:
    """A name that fits beside the picture and that its font can write."""
    half = LONGEST // 2
    short = name if len(name) <= LONGEST else f"{name[:half]}…{name[1 - half :]}"
    return "".join(one if ord(one) in glyphs() else "\N{WHITE SQUARE}" for one in short)
