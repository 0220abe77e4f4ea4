"""metrics.csv: all logged metrics, one row per step, in a file that survives kills and resumes."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from numpy.typing import NDArray

from makemoe.errors import CheckpointError
from makemoe.files import replacing

NUMBER = re.compile("[0-9]{1,18}")

Row = dict[str, str]


class MetricsCSV(Logger):
    """Writes metrics to `folder`/metrics.csv; the first column is `step`.

    When a run resumes at step s, rows of later steps are removed, because those steps are run
    again. A metric that first appears later is added as a column to the whole file.

    Args:
        folder: folder of the run.
        resume_step: the step a run resumes at; None: a new run.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        super().__init__()
        self.folder, self.path = folder, folder / "metrics.csv"
        self.resume_step = resume_step
        self.columns: list[str] = []
        self.row: Row = {}
        self.row_begins = 0

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def version(self) -> str:
        """Empty, because each run has its own folder."""
        return ""

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsCSV":
        """The writer itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml contains the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of `step`; they are in the file when this method returns."""
        if not self.columns:
            self._take_up()
        at = str(0 if step is None else int(step))
        if self.row.get("step") != at:
            self.row, self.row_begins = {"step": at}, self.path.stat().st_size
        # Lightning adds its epoch, which is always 0 here.
        figures = {name: value for name, value in metrics.items() if name != "epoch"}
        self.row |= {name: written(value) for name, value in figures.items()}
        late = sorted(self.row.keys() - set(self.columns))
        if late:
            rows = [row for row in self._rows() if row["step"] != at]
            self.columns += late
            self._rewrite(rows)
        self._write_row()

    def _take_up(self) -> None:
        """Create the file, or continue an existing one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.columns, rows = ["step"], []
        if self.resume_step is not None and self.path.exists():
            with opened(self.path) as file:
                self.columns = header(csv.reader(file), self.path)
            rows = [row for row in self._rows() if int(row["step"]) <= self.resume_step]
        self._rewrite(rows)
        if rows:
            # The row of the last step may be incomplete: it may get more figures.
            self.row = rows[-1]
            self.row_begins -= len(self._written([self.row]))

    def _write_row(self) -> None:
        """Replace the last row of the file, or what a kill left of it."""
        with self.path.open("r+", newline="") as file:
            file.seek(self.row_begins)
            csv.DictWriter(file, self.columns).writerow(self.row)
            file.truncate()  # not before, in case of a kill

    def _rows(self) -> list[Row]:
        """The complete rows of the file, without one that a kill truncated."""
        with opened(self.path) as file:
            whole = [line for line in file if line.endswith("\n")]
        rows = [
            {name: row.get(name) or "" for name in self.columns}
            for row in csv.DictReader(whole[1:], self.columns)
        ]
        return [row for row in rows if NUMBER.fullmatch(row["step"])]

    def _rewrite(self, rows: list[Row]) -> None:
        """Replace the file atomically."""
        head = dict(zip(self.columns, self.columns, strict=True))
        with replacing(self.path) as file:
            file.write(self._written([head, *rows]))
        self.row_begins = self.path.stat().st_size

    def _written(self, rows: list[Row]) -> bytes:
        """Rows as they stand in the file."""
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns, restval="").writerows(rows)
        return text.getvalue().encode()


def opened(path: Path) -> TextIO:
    """A metrics.csv, which another program may have written again, with a mark of its encoding."""
    return path.open(newline="", encoding="utf-8-sig", errors="replace")


def header(rows: Iterator[list[str]], path: Path) -> list[str]:
    """The names of the columns, from the first row; of an empty file, `step`.

    Raises:
        CheckpointError: for a file that is no metrics.csv.
    """
    names = next(rows, ["step"])
    while len(names) > 1 and not names[-1]:  # a spreadsheet pads all rows to one length
        del names[-1]
    if names[:1] != ["step"] or len(set(names)) < len(names):
        raise CheckpointError(
            f"{path} does not begin with the names of its columns, step first: move it away, and "
            "the run goes on with a new one"
        )
    return names


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every column of a metrics.csv, NaN where a step has no value."""
    with opened(path) as file:
        rows = csv.reader(file)
        names = header(rows, path)
        figures = [[number(figure) for figure in row] for row in rows]
    whole = [row + [np.nan] * (len(names) - len(row)) for row in figures]
    return {name: np.array([row[at] for row in whole]) for at, name in enumerate(names)}


def written(value: float) -> str:
    """A figure in nine digits, with which float32 can be read back; a count in all of them."""
    return str(value) if type(value) is int else f"{float(value):.9g}"


def number(text: str) -> float:
    """A figure; NaN for what is none."""
    try:
        return float(text)
    except ValueError:
        return np.nan
