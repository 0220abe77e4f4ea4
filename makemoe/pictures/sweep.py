"""Draws a sweep: its history, which options matter, all trials, and experts against the loss."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from makemoe.pictures.compared import COLOURS, shortened
from makemoe.pictures.sheet import DPI

MAP = "viridis_r"
"""Colours of losses, for all kinds of colour vision: the darkest are the lowest."""

EXPERTS = "num_experts"
UNIT = "validation loss, nats per token"

SHOWN = 0.9
"""Share of the trials, from the best, whose losses the axes show; worse ones are at the edge."""

Value = int | float | str


class Drawn(NamedTuple):
    """A trial.

    Attributes:
        number: from 0.
        loss: mean over its seeds; of a pruned trial, its last one.
        is_complete: whether it was not pruned.
        values: what it has of the options, by their short names.
        told: the same in few characters.
    """

    number: int
    loss: float
    is_complete: bool
    values: Mapping[str, Value]
    told: Mapping[str, str]


def draw_sweep(
    trials: Sequence[Drawn], importances: Mapping[str, float], logs: set[str], seeds: int
) -> Figure:
    """Draw four panels.

    Args:
        trials: the trials that have ended and have a loss, at least one of them complete.
        importances: the share of each option, by its short name; empty if it is not known.
        logs: options whose ratios matter.
        seeds: runs per trial.
    """
    figure = Figure((13, 8.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    complete = [one for one in trials if one.is_complete]
    pruned = len(trials) - len(complete)
    of_seeds = "one seed each" if seeds == 1 else f"mean of {seeds} seeds each"
    figure.suptitle(
        f"{len(complete)} complete trials, {of_seeds}, and {pruned} pruned",
        fontsize=13,
        x=0.01,
        ha="left",
    )
    grid = figure.subplots(2, 2)
    limits = limits_of(complete)
    draw_history(grid[0, 0], trials, limits)
    draw_importances(grid[0, 1], importances)
    colours = ScalarMappable(Normalize(*limits), MAP)
    draw_parallel(grid[1, 0], complete, logs, colours)
    figure.colorbar(colours, ax=grid[1, 0], label=UNIT, pad=0.02, aspect=30)
    options = list(dict.fromkeys(key for one in complete for key in one.values))
    first = EXPERTS if EXPERTS in options else max(options, key=lambda k: importances.get(k, 0.0))
    draw_option(grid[1, 1], complete, first, first in logs, limits)
    return figure


def limits_of(complete: Sequence[Drawn]) -> tuple[float, float]:
    """The range of losses that is shown."""
    losses = np.array([one.loss for one in complete])
    low, high = float(losses.min()), float(np.quantile(losses, SHOWN))
    room = max(0.06 * (high - low), 0.002)
    return low - room, high + room


def draw_history(axes: Axes, trials: Sequence[Drawn], limits: tuple[float, float]) -> None:
    """Draw the loss of each trial in turn, and the lowest one so far."""
    complete = [one for one in trials if one.is_complete]
    pruned = [one for one in trials if not one.is_complete]
    for some, marker, name in ((complete, "o", "complete"), (pruned, "x", "pruned")):
        if some:
            axes.plot(
                [one.number for one in some],
                [min(one.loss, limits[1]) for one in some],
                marker,
                color=COLOURS[2] if marker == "o" else "0.55",
                ms=5,
                label=name,
            )
    lowest = np.minimum.accumulate([one.loss for one in complete])
    numbers = [one.number for one in complete]
    axes.step(numbers, lowest, where="post", color=COLOURS[1], lw=1.6, label="lowest so far")
    axes.set_ylim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    titled(axes, "History", "trial", UNIT)
    axes.legend(fontsize=8, loc="upper right", framealpha=0.9)


def draw_importances(axes: Axes, importances: Mapping[str, float]) -> None:
    """Draw how much of the losses' variation each option explains."""
    found = sorted(importances.items(), key=lambda pair: pair[1])
    if not found:
        axes.text(0.5, 0.5, "too few trials", ha="center", transform=axes.transAxes, color="0.4")
    for place, (_, share) in enumerate(found):
        axes.barh(place, share, color=COLOURS[2], height=0.6)
        axes.text(share + 0.01, place, f"{share:.0%}", va="center", fontsize=8.5)
    axes.set_yticks(range(len(found)), [shortened(name) for name, _ in found])
    axes.set_xlim(0, 1.1)
    titled(axes, "Importance", "share of the variation between good and other trials", "")


def draw_parallel(
    axes: Axes, complete: Sequence[Drawn], logs: set[str], colours: ScalarMappable
) -> None:
    """Draw each trial as a line through its values, the best ones on top."""
    options = list(dict.fromkeys(key for one in complete for key in one.values))
    scales = {key: Scale([one.values[key] for one in complete], key in logs) for key in options}
    for one in sorted(complete, key=lambda one: -one.loss):
        heights = [scales[key].height(one.values[key]) for key in options]
        (colour,) = colours.to_rgba(np.array([one.loss]))
        axes.plot(range(len(options)), heights, color=colour, lw=1.3, alpha=0.9)
    for place, key in enumerate(options):
        axes.axvline(place, color="0.75", lw=0.8, zorder=0)
        told = {one.values[key]: one.told[key] for one in complete}
        for value in scales[key].marks():
            text = shortened(told.get(value, f"{value:.3g}" if isinstance(value, float) else ""))
            axes.text(place + 0.03, scales[key].height(value), text, fontsize=7.5, va="center")
    axes.set_xticks(range(len(options)), [shortened(key) for key in options])
    axes.set_xlim(-0.1, max(len(options) - 0.55, 0.5))
    axes.set_yticks([])
    titled(axes, "All complete trials", "", "")


def draw_option(
    axes: Axes, complete: Sequence[Drawn], key: str, is_log: bool, limits: tuple[float, float]
) -> None:
    """Draw the losses by the value of one option, and the lowest per value."""
    scale = Scale([one.values[key] for one in complete], is_log)
    places = [scale.height(one.values[key]) for one in complete]
    axes.plot(places, [min(one.loss, limits[1]) for one in complete], "o", color=COLOURS[2], ms=5)
    lowest: dict[float, float] = {}
    for place, one in zip(places, complete, strict=True):
        lowest[place] = min(one.loss, lowest.get(place, one.loss))
    axes.plot(
        *zip(*sorted(lowest.items()), strict=True),
        color=COLOURS[1],
        lw=1.4,
        label="lowest per value",
    )
    told = {one.values[key]: one.told[key] for one in complete}
    marks = scale.marks()
    axes.set_xticks([scale.height(v) for v in marks], [shortened(told.get(v, "")) for v in marks])
    axes.set_ylim(*limits)
    titled(axes, f"{key} against the loss", key, UNIT)
    axes.legend(fontsize=8, loc="upper right", framealpha=0.9)


class Scale:
    """Where values stand on an axis from 0 to 1: by size, by ratio, or choices one by one."""

    def __init__(self, values: Sequence[Value], is_log: bool) -> None:
        self.values = sorted(set(values), key=lambda v: (isinstance(v, str), v))
        self.is_log = is_log
        self.are_numbers = not any(isinstance(value, str) for value in self.values)

    def height(self, value: Value) -> float:
        """The place of a value."""
        if not self.are_numbers:
            return self.values.index(value) / max(1, len(self.values) - 1)
        low, high, own = (self._by_size(one) for one in (self.values[0], self.values[-1], value))
        return (own - low) / (high - low) if high > low else 0.5

    def _by_size(self, value: Value) -> float:
        return float(np.log(value) if self.is_log else value)

    def marks(self) -> list[Value]:
        """Values to write beside the axis: few, and not on top of each other."""
        kept: list[Value] = []
        for value in (self.values[0], self.values[-1], *self.values):
            if all(abs(self.height(value) - self.height(other)) >= 0.09 for other in kept):
                kept.append(value)
        return kept


def titled(axes: Axes, title: str, x: str, y: str) -> None:
    """Name a panel and its axes."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
