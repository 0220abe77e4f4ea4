"""A comparison as a table."""

from collections.abc import Sequence

from makemoe.search.plan import Plan, Variant
from makemoe.search.results import Result, Spread, are_comparable, differ_in_text

SIZES = ("variant", "parameters", "active", "FLOPs/token", "tokens", "FLOPs")
HEADS = (*SIZES, "best val_loss", "final val_loss", "seeds", "seconds")
BITS = "final bits/byte"
PLAN_HEADS = (*SIZES, "steps", "validation", "s per run")
SPARED = (
    *("FLOPs/token", "tokens", "FLOPs", "validation", "active", "parameters", "steps"),
    *("seconds", "s per run"),
)
"""Columns that are left out, in this order, where there is no room for all."""

DIFFERENT_TEXTS = "the variants are validated on different texts, so their losses do not compare"

UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def table(results: Sequence[Result], room: int | None = None) -> list[str]:
    """The lines of the table: losses as mean ± sample standard deviation over seeds.

    Losses of different tokenizers compare in bits per byte only, which is then a column. Below the
    table, whether the texts differ, and why runs failed.

    Args:
        results: a line for each.
        room: characters per line; None for any number.
    """
    rows = [HEADS, *(row(result) for result in results)]
    variants = [result.variant for result in results]
    if not are_comparable(variants):
        column = [BITS, *(losses(result.final_bits) for result in results)]
        at = HEADS.index("seeds")
        rows = [(*one[:at], bits, *one[at:]) for one, bits in zip(rows, column, strict=True)]
    notes = [f"note: {DIFFERENT_TEXTS}"] if differ_in_text(variants) else []
    return in_columns(rows, room) + notes + [line for one in results for line in failures(one)]


def row(result: Result) -> tuple[str, ...]:
    """The line of a variant."""
    seconds = "-" if result.seconds is None else f"{result.seconds:,.0f}"
    done = f"{len(result.curves)}"
    if len(result.curves) < len(result.runs):
        done = f"{done} of {len(result.runs)}"
    return (*sizes(result.variant), losses(result.best), losses(result.final), done, seconds)


def sizes(variant: Variant) -> tuple[str, ...]:
    """What is known of a variant before it is trained."""
    spent = variant.tokens * variant.flops
    counts = (variant.parameters, variant.active, variant.flops, variant.tokens, spent)
    return (titled(variant), *map(rounded, counts))


def titled(variant: Variant) -> str:
    """The name of a variant; for a twin, also how far its size is off."""
    if variant.twin is None:
        return variant.name
    return f"{variant.name} ({100 * variant.twin.difference:+.2g} %)"


def losses(found: Spread | None) -> str:
    """Mean and spread."""
    if found is None:
        return "-"
    return f"{found.mean:.4f}" + ("" if found.spread is None else f" ± {found.spread:.4f}")


def failures(result: Result) -> list[str]:
    """Why runs of a variant failed; runs that failed alike are told once."""
    seeds: dict[str, list[int]] = {}
    for run in result.failures:
        seeds.setdefault(run.why, []).append(run.seed)
    return [
        f"failed: {result.variant.name}, seed {', '.join(map(str, found))}: {reason}"
        for reason, found in seeds.items()
    ]


def plan_table(plan: Plan, room: int | None = None) -> list[str]:
    """The variants and their sizes, before they are trained, in lines of at most `room`."""
    rows = []
    for variant in plan.variants:
        seconds = "?" if variant.seconds is None else f"{variant.seconds:,.0f}"
        when = (f"{variant.steps:,}", f"every {variant.val_every:,}")
        rows.append((*sizes(variant), *when, seconds))
    return in_columns([PLAN_HEADS, *rows], room)


def in_columns(rows: Sequence[tuple[str, ...]], room: int | None = None) -> list[str]:
    """Rows as lines: the first column to the left, numbers to the right.

    Without room for them, columns that the plan has shown or that matter less are left out.
    """
    lines = aligned(rows)
    for name in SPARED:
        if room is None or max(map(len, lines)) <= room:
            break
        if name in rows[0]:
            at = rows[0].index(name)
            rows = [(*one[:at], *one[at + 1 :]) for one in rows]
            lines = aligned(rows)
    return lines


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines whose cells are as wide as the widest of their column."""
    widths = [max(len(one[i]) for one in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(one, widths, strict=True))
        ).rstrip()
        for one in rows
    ]


def rounded(number: int) -> str:
    """A count with four digits and a unit."""
    for size, unit in UNITS:
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number}"
