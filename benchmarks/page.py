"""Sections and tables of a page about comparisons, in Markdown."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.figures import markdown
from benchmarks.kept import Variant, change

WIDTH = 110
"""Longest line of the page, in characters."""

CORPUS = "--data.corpus tinyshakespeare.txt"
"""The corpus, in commands."""


def section(title: str, command: str, *paragraphs: str) -> str:
    """A part of the page with its heading; empty paragraphs are left out."""
    return joined(f"## {title}", f"    {command}", *map(filled, filter(None, paragraphs)))


def filled(text: str) -> str:
    """A paragraph in lines as long as those of the page; a table, a list or a command as it is."""
    if text.startswith(("|", "    ", "- ")):
        return text
    return wrapped(text)


def bullets(items: Iterable[str]) -> str:
    """A list, in lines as long as those of the page."""
    return "\n".join(wrapped(f"- {item}", "  ") for item in items)


def wrapped(text: str, indent: str = "") -> str:
    """Lines as long as those of the page; all but the first begin with `indent`."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def joined(*parts: str) -> str:
    """Parts of a page, with empty lines between and after them."""
    return "".join(part.rstrip("\n") + "\n\n" for part in parts)


def differences(variants: Sequence[Variant], what: str, shown: Callable[[str], str] = str) -> str:
    """Every variant against the first one, by what is shown for its name."""
    base, *others = variants
    found = sorted(((change(one, base), one) for one in others), key=lambda pair: pair[0][0])
    rows = [[shown(base["name"]), sizes(base), loss(base["final_val_loss"]), ""]]
    for (mean, spread), variant in found:
        own = [shown(variant["name"]), sizes(variant), loss(variant["final_val_loss"])]
        rows.append([*own, deviating(mean, spread, "+")])
    return markdown([what, "parameters (active)", "val loss, end", "difference"], rows)


def sizes(variant: Variant) -> str:
    """Parameters in total, and active for a token."""
    return f"{variant['parameters']:,} ({variant['active_parameters']:,})"


def tokens(variant: Variant) -> str:
    """Tokens of training."""
    return f"{variant['tokens'] / 1e6:.2f} M"


def loss(found: Mapping[str, Any]) -> str:
    """Mean and sample standard deviation over seeds."""
    seeds = f"{found['n']} seed{'s' if found['n'] > 1 else ''}"
    return f"{deviating(found['mean'], found['spread'])} ({seeds})"


def deviating(mean: float, spread: float | None, sign: str = "") -> str:
    """A mean and its deviation, if it has one."""
    return f"{mean:{sign}.4f}" + ("" if spread is None else f" ± {spread:.4f}")
