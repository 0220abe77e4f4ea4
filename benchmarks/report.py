"""Prints results as a table and writes them as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """A bound for a value: sign is >= or <=."""

    sign: str
    bound: float
    unit: str = "x"

    def is_met(self, figure: float) -> bool:
        return figure >= self.bound if self.sign == ">=" else figure <= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}{'' if self.unit == 'x' else ' '}{self.unit}"


def times(ratio: float, longer: bool, unit: str) -> str:
    """A ratio in words; see `Result`."""
    return f"{ratio:.2f}x" + f" as {'much' if unit == 'MB' else 'long'}" * longer


@dataclass
class Result:
    """One line of the table.

    Attributes:
        work: what was done.
        dtype: the dtype of ours.
        ours: a time or a rate, in `unit`.
        against: the baseline and its dtype.
        theirs: its time or rate, in the same unit.
        unit: ms, s, tokens/s or MB/s.
        goal: the bound for `judged`.
        judged: the value the goal applies to, if it is not the ratio.
        longer: the ratio says how many times as long ours takes, instead of how many times as fast.
        share: fraction of the machine's limits, by the limit's name.
        peak_mb: memory of the work, ours and the baseline's.
        note: why there is no value, or other remarks.
    """

    work: str
    dtype: str = ""
    ours: float | None = None
    against: str = ""
    theirs: float | None = None
    unit: str = "ms"
    goal: Goal | None = None
    judged: float | None = None
    longer: bool = False
    share: Mapping[str, float] = field(default_factory=dict)
    peak_mb: Sequence[float | None] = ()
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is; with `longer`, how many times as long it takes."""
        if self.ours is None or self.theirs is None:
            return None
        ours_on_top = self.longer != self.unit.endswith("/s")
        return self.ours / self.theirs if ours_on_top else self.theirs / self.ours

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met; None without a goal or without a value."""
        figure = self.ratio if self.judged is None else self.judged
        return None if self.goal is None or figure is None else self.goal.is_met(figure)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "goal": None if self.goal is None else str(self.goal),
            "ratio": self.ratio,
            "reached": self.reached,
        }

    def told_ratio(self) -> str:
        if self.ratio is None:
            return ""
        if self.goal is not None and self.goal.unit == "%":
            return f"{100 * self.ratio:.2f} %"
        return times(self.ratio, self.longer, self.unit)

    def cells(self) -> list[str]:
        reached = {None: "", True: "reached", False: "not reached"}[self.reached]
        return [
            self.work,
            self.dtype,
            "" if self.ours is None else f"{three_digits(self.ours)} {self.unit}",
            "" if self.theirs is None else f"{three_digits(self.theirs)} {self.unit}",
            self.against,
            self.told_ratio(),
            "" if self.goal is None else str(self.goal),
            reached,
            ", ".join(f"{share:.0%} {name}" for name, share in self.share.items()),
            " / ".join("?" if peak is None else f"{peak:.0f}" for peak in self.peak_mb),
            self.note,
        ]


HEAD = [
    "work",
    "dtype",
    "ours",
    "theirs",
    "against",
    "ratio",
    "goal",
    "",
    "of limit",
    "MB, ours / theirs",
    "",
]


def three_digits(figure: float) -> str:
    """A number with at least three significant digits and no exponent."""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def table(results: Sequence[Result]) -> str:
    """Aligned columns; for a result without values, its work and its note."""
    full = [HEAD, *(result.cells() for result in results if result.ours is not None)]
    widths = [max(len(cell) for cell in column) for column in zip(*full, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
        return "  ".join(padded).rstrip()

    return "\n".join(
        [line(HEAD)]
        + [
            f"{line([result.work])}: {result.note}" if result.ours is None else line(result.cells())
            for result in results
        ]
    )


def write(path: Path, about: Mapping[str, Any], rows: Mapping[str, Sequence[Result]]) -> None:
    """Write the rows as JSON; rows in the same file that were not run are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    found = {
        name: {**about, "results": [result.as_json() for result in results]}
        for name, results in rows.items()
    }
    text = json.dumps({"rows": kept | found}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
