"""How two runs differ: in weights, optimizer, losses, samples, and all else that was saved."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from makemoe.checkpoint.format import read
from makemoe.checkpoint.in_pieces import whole_of

APART = {"tokens_per_second", "mfu"}
"""Columns of metrics.csv that say how fast a run was."""

SUMMED = "router/"
"""Metrics of training that span several steps. Several processes have sums of their own, a
checkpoint the sum of those, so that a resumed run adds in another order."""

ROUNDING = 1e-6

Row = dict[str, str]

OF_THE_PLACE = {"callbacks", "makemoe", "hyper_parameters", "datamodule_hyper_parameters"}
"""Entries of a checkpoint that name folders, or settings, which a resumed run spells out."""


def differences(one: Path, other: Path) -> list[str]:
    """What two runs, given by their folders, do not have in common, bit for bit."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        pair = [read(run / name) for run in (one, other)]
        held = [{k: v for k, v in c.items() if k not in OF_THE_PLACE} for c in pair]
        found += [f"{name}: {where}" for where in unlike(*held)]
        best = [[v for k, v in c["callbacks"].items() if "BestCheckpoint" in k] for c in pair]
        scores = [[state.get("best_model_score") for state in states] for states in best]
        found += [f"{name}: {where}" for where in unlike(*scores, "best loss")]
    found += [f"metrics.csv: {where}" for where in unlike_rows(rows(one), rows(other))]
    if (one / "samples.txt").read_bytes() != (other / "samples.txt").read_bytes():
        found.append("samples.txt")
    return found


def unlike(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Yield where two nested values differ."""
    one, other = whole_of(one), whole_of(other)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys(), key=str):
            if key in one and key in other:
                yield from unlike(one[key], other[key], f"{where}/{key}")
            else:
                yield f"{where}/{key}"
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield where
        for number, pair in enumerate(zip(one, other, strict=False)):
            yield from unlike(*pair, f"{where}/{number}")
    elif repr(one) != repr(other):
        yield where


def unlike_rows(one: list[Row], other: list[Row]) -> Iterator[str]:
    """Yield which metrics of which step differ."""
    if [row["step"] for row in one] != [row["step"] for row in other]:
        yield "steps"
    for first, second in zip(one, other, strict=False):
        for name in first.keys() | second.keys():
            was, now = first.get(name, ""), second.get(name, "")
            if was != now and not (name.startswith(SUMMED) and is_close(was, now)):
                yield f"{name} of step {first['step']} is {now!r}, not {was!r}"


def is_close(one: str, other: str) -> bool:
    """Whether two numbers differ by rounding only."""
    return bool(one and other) and abs(float(one) - float(other)) < ROUNDING


def rows(run: Path) -> list[Row]:
    """The logged metrics, without those that measure time."""
    with (run / "metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if name not in APART}
            for row in csv.DictReader(file)
        ]
