"""Draws the routing: loads and their history, symbols by expert, experts chosen together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from makemoe.pictures.sheet import (
    HEADER,
    MARGIN,
    SMALL,
    WORDS,
    Floats,
    Panels,
    Scale,
    Sheet,
)
from makemoe.pictures.symbols import CLASSES, classify, is_character, label

Counts = NDArray[np.int64]

FEWEST_SEEN = 20
"""For a symbol seen less often, shares are mostly noise: their standard error is above 0.1."""

TALLEST = 6000
"""Maximum height in pixels; if more is needed, classes are drawn without their symbols."""

MOST_PIXELS = 1 << 25
"""A larger picture of loads is not drawn: it takes 12 bytes a pixel, more than a small model."""

LEFT = 64
"""Width of the layer names, in pixels."""

MOST_SYMBOLS = 120
"""Maximum number of symbols drawn, the most frequent ones; more rows would not be readable."""


def draw_load(
    steps_S: NDArray[np.int64],
    load_SLE: Floats,
    top_k: int,
    step: int,
    layers: Sequence[int] | None = None,
) -> Figure | None:
    """Draw the load of each expert, now and at each validation so far; None if it is too large.

    Args:
        steps_S: the steps of the validations, ascending.
        load_SLE: shares of a layer's assignments; rows sum to 1.
        top_k: experts per token K.
        step: shown in the title.
        layers: the numbers of the L layers; None: all from 0.
    """
    relative_SLE = load_SLE * load_SLE.shape[-1]
    _, L, E = relative_SLE.shape
    names = layer_names(L, layers)
    wide, high = (46, 20) if E <= 16 else (max(4, 768 // E), 12)
    panels = Panels(L, 300, E * max(3, min(20, 112 // E)), left=LEFT, between=LEFT)
    below = HEADER + 28 + L * high + 34
    width = max(panels.total_width, LEFT + E * wide + MARGIN)
    height = below + panels.total_height + 40
    if width * height > MOST_PIXELS:
        return None
    sheet = Sheet(
        width,
        height,
        f"Load of the experts, step {step:,}",
        f"Share of the validation text's assignments per expert, divided by the even share 1/{E}.",
        Scale(even=1.0, most=min(E / top_k, 4.0)),
        f"1: even; 0: dead expert; {E / top_k:.3g}: all tokens",
    )
    left, top = LEFT, HEADER + 28
    sheet.text(left, top - 24, "experts")
    sheet.number_columns(left, top - 9, E, wide)
    sheet.cells(left, top, relative_SLE[-1], wide, high)
    for layer in range(L):
        if not layer or high >= SMALL:
            sheet.text(left - 4, top + (layer + 0.5) * high, names[layer], ha="right")
        for expert, value in enumerate(relative_SLE[-1, layer] if wide > 40 else ()):
            x, y = left + (expert + 0.5) * wide, top + (layer + 0.5) * high
            ink = "black" if sheet.scale.position(value) > 0.45 else "white"
            sheet.text(x, y, f"{value:.2f}", ha="center", color=ink)
    sheet.text(MARGIN, below + 8, "History, one row per expert", WORDS)
    high = panels.height // E
    # Each validation's colours extend back to the previous one: the axis is linear in steps.
    at = np.linspace(0, steps_S[-1], panels.width)
    column = np.searchsorted(steps_S, at).clip(max=len(steps_S) - 1)
    for layer in range(L):
        x, y = panels.place(layer, below)
        sheet.text(x, y - 10, names[layer])
        sheet.cells(x, y, relative_SLE[column, layer].T, 1, high)
        sheet.number_rows(x, y, E, high)
        sheet.text(x, y + panels.height + 10, "0")
        end = f"step {steps_S[-1]:,}"
        sheet.text(x + panels.width, y + panels.height + 10, end, ha="right")
    return sheet.finish()


def draw_pairs(
    counts_LEE: Counts, top_k: int, step: int, layers: Sequence[int] | None = None
) -> Figure:
    """Draw which experts are chosen for the same tokens.

    Args:
        counts_LEE: number of tokens per pair of experts; on the diagonal, per expert.
        top_k: experts per token K, 2 or more.
        step: shown in the title.
        layers: the numbers of the L layers; None: all from 0.
    """
    L, E, _ = counts_LEE.shape
    names = layer_names(L, layers)
    cell = max(2, min(22, 256 // E))
    panels = Panels(L, E * cell, E * cell, left=LEFT)
    sheet = Sheet(
        panels.total_width,
        HEADER + panels.total_height + MARGIN,
        f"Experts chosen together, step {step:,}",
        "Share of the row expert's tokens that the column expert gets too.",
        Scale(even=(top_k - 1) / (E - 1), most=1.0),
        f"even: {(top_k - 1) / (E - 1):.2g}; grey: same expert, or no tokens",
    )
    for layer, share_EE in enumerate(pair_shares(counts_LEE)):
        x, y = panels.place(layer, HEADER)
        sheet.text(x, y - 26, names[layer])
        sheet.cells(x, y, share_EE, cell, cell)
        sheet.number_columns(x, y - 9, E, cell)
        sheet.number_rows(x, y, E, cell)
    return sheet.finish()


def layer_names(count: int, layers: Sequence[int] | None) -> list[str]:
    """What the layers are called."""
    return [f"layer {number}" for number in (range(count) if layers is None else layers)]


def pair_shares(counts_LEE: Counts) -> Floats:
    """P(b is chosen | a is chosen) for experts a (rows) and b; NaN for a = b and without tokens."""
    tokens_LE = np.diagonal(counts_LEE, axis1=1, axis2=2)
    share_LEE = _over(counts_LEE, tokens_LE[..., None])
    share_LEE[:, np.eye(share_LEE.shape[-1], dtype=np.bool_)] = np.nan
    return share_LEE


class Group(NamedTuple):
    """A group of rows: the classes, or the symbols of one class."""

    name: str
    labels: list[str]
    seen_R: Counts
    share_LRE: Floats


def draw_symbols(
    counts_LVE: Counts,
    symbols: Sequence[str],
    top_k: int,
    step: int,
    layers: Sequence[int] | None = None,
) -> Figure | None:
    """Draw which symbols, and which classes of them, go to which expert.

    Args:
        counts_LVE: number of assignments per symbol and expert.
        symbols: the V symbols.
        top_k: experts per token K.
        step: shown in the title.
        layers: the numbers of the L layers; None: all from 0.

    Returns:
        The figure; None if too few symbols were seen.
    """
    L, V, E = counts_LVE.shape
    names = layer_names(L, layers)
    groups = list(grouped(counts_LVE, symbols, top_k))
    if not groups:
        return None
    wide, high, gap = max(2, min(16, 256 // E)), 14, 7

    def panels_of(groups: list[Group]) -> Panels:
        height = sum(len(group.labels) * high + gap for group in groups) - gap
        return Panels(L, E * wide, height, left=170, right=70, between=14)

    if panels_of(groups).total_height > TALLEST:
        groups = groups[:1]
    panels = panels_of(groups)
    shown = sum(len(group.labels) for group in groups[1:])
    kind = "character" if all(map(is_character, symbols)) else "token"
    sheet = Sheet(
        panels.total_width,
        HEADER + panels.total_height + 44,
        f"Which {kind}s go to which expert, step {step:,}",
        f"Share of a {kind}'s places in the validation text that the expert gets "
        f"({top_k} of {E} experts per token).",
        Scale(even=top_k / E, most=1.0),
        f"even: {top_k / E:.2g}",
    )
    for layer in range(L):
        x, top = panels.place(layer, HEADER)
        first, last = layer % panels.per_row == 0, (layer + 1) % panels.per_row == 0
        sheet.text(x, top - 26, names[layer])
        sheet.number_columns(x, top - 9, E, wide)
        if last or layer == L - 1:
            sheet.text(x + panels.width + 8, top - 9, "seen")
        y = top
        for group in groups:
            sheet.cells(x, y, group.share_LRE[layer], wide, high)
            if first:
                middle = y + len(group.labels) * high / 2
                sheet.text(MARGIN, middle, group.name)
            for row, (name, seen) in enumerate(zip(group.labels, group.seen_R, strict=True)):
                if first:
                    sheet.text(x - 8, y + (row + 0.5) * high, name, ha="right")
                if last or layer == L - 1:
                    sheet.text(x + panels.width + 8, y + (row + 0.5) * high, f"{seen:,}")
            y += len(group.labels) * high + gap
    if shown < V:
        sheet.text(
            MARGIN,
            sheet.height - 20,
            f"Not shown: {V - shown} {kind}s seen fewer than {FEWEST_SEEN} times, or without "
            "room; they are included in their classes.",
        )
    return sheet.finish()


def grouped(counts_LVE: Counts, symbols: Sequence[str], top_k: int) -> Iterator[Group]:
    """Yield the classes, then the frequent symbols of each class."""
    seen_V = counts_LVE[0].sum(-1) // top_k
    class_V = np.array([classify(symbol) for symbol in symbols])
    present = [name for name in CLASSES if seen_V[class_V == name].sum() >= FEWEST_SEEN]
    if not present:
        return
    sums = [counts_LVE[:, class_V == name].sum(1) for name in present]
    yield group_of("classes", present, np.stack(sums, axis=1), top_k)
    frequent_V = np.zeros(len(seen_V), np.bool_)
    frequent_V[np.argsort(-seen_V, kind="stable")[:MOST_SYMBOLS]] = True
    for name in present:
        rows = np.flatnonzero((class_V == name) & frequent_V & (seen_V >= FEWEST_SEEN))
        if len(rows):
            yield group_of(name, [label(symbols[int(v)]) for v in rows], counts_LVE[:, rows], top_k)


def group_of(name: str, labels: list[str], counts_LRE: Counts, top_k: int) -> Group:
    """Convert counts to shares of each row's tokens."""
    seen_R = counts_LRE[0].sum(-1) // top_k
    return Group(name, labels, seen_R, _over(counts_LRE, seen_R[:, None]))


def _over(counts: Counts, tokens: Counts) -> Floats:
    """A ratio; NaN where there are no tokens."""
    ratio: Floats = np.divide(counts, tokens, out=np.full(counts.shape, np.nan), where=tokens > 0)
    return ratio
