"""Draws losses, and the expert load balance below them, over the steps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from makemoe.pictures.sheet import DPI, Floats

# From Okabe and Ito's palette for all kinds of colour vision, with different lightness; line styles
# differ too.
TRAINING: dict[str, Any] = {"color": "#56B4E9", "lw": 1.2, "ls": "-", "marker": ".", "ms": 3}
SPLIT: dict[str, Any] = {"color": "#D55E00", "lw": 1.6, "ls": ":", "marker": "s", "ms": 3}
VALIDATION: dict[str, Any] = {"color": "black", "lw": 1.6, "ls": "--", "marker": "o", "ms": 3.5}

LOSSES = {
    "train_loss": ("training batch", TRAINING),
    "train_split_loss": ("training split, exact", SPLIT),
    "val_loss": ("validation, exact", VALIDATION),
}
BALANCES = {
    "router/max_vio": ("training", TRAINING),
    "val_router/max_vio": ("validation", VALIDATION),
}


def draw_curves(columns: Mapping[str, Floats], step: int) -> Figure:
    """Draw losses in nats per token, and MaxVio, over the steps.

    Args:
        columns: columns of metrics.csv, NaN where a step has no value.
        step: shown in the title.
    """
    figure = Figure((9, 6.4), dpi=DPI)
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.subplots_adjust(left=0.08, right=0.98, top=0.9, bottom=0.08, hspace=0.16)
    figure.text(0.08, 0.95, f"Loss and balance of the experts, step {step:,}", fontsize=12)
    for axes, curves in ((above, LOSSES), (below, BALANCES)):
        for name, (words, style) in curves.items():
            if name in columns:
                there = ~np.isnan(columns[name])
                x, y = columns["step"][there], columns[name][there]
                last = f": {y[-1]:.3f}" if len(y) else ""
                axes.plot(x, y, label=f"{words}{last}", **style)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    violation = [v for name, v in columns.items() if _is_of_layer(name)]
    if len(violation) > 1:
        there = ~np.isnan(violation[0])
        least, most = np.min(violation, 0)[there], np.max(violation, 0)[there]
        words = "validation, range over layers"
        band = {"color": "0.5", "alpha": 0.25, "lw": 0}
        below.fill_between(columns["step"][there], least, most, label=words, **band)
    for axes in (above, below):
        if axes.lines:
            axes.legend(
                fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False
            )
        else:
            axes.text(0.5, 0.5, "no router", ha="center", transform=axes.transAxes, fontsize=9)
    above.set_ylabel("loss, nats per token", fontsize=9)
    below.set_ylabel("MaxVio (0: even load)", fontsize=9)
    below.set_xlabel("step", fontsize=9)
    below.set_ylim(bottom=0)
    below.set_xlim(0, 1.02 * step)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _is_of_layer(name: str) -> bool:
    return name.startswith("val_router/layer_") and name.endswith("/max_vio")
