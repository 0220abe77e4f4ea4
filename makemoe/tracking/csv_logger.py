"""metrics.csv: all logged metrics, one row per step, in a file that survives kills and resumes."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from numpy.typing import NDArray

from makemoe.files import replacing

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
        self.row |= {name: f"{float(value):.9g}" for name, value in figures.items()}
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
            with self.path.open(newline="") as file:
                self.columns = next(csv.reader(file), self.columns)
            rows = [row for row in self._rows() if int(row["step"]) <= self.resume_step]
        # The row of the last step may be incomplete.
        self.row = rows.pop() if rows else {}
        self._rewrite(rows)
        if self.row:
            self._write_row()

    def _write_row(self) -> None:
        """Replace the last row of the file, or what a kill left of it."""
        with self.path.open("r+", newline="") as file:
            file.seek(self.row_begins)
            file.truncate()
            csv.DictWriter(file, self.columns).writerow(self.row)

    def _rows(self) -> list[Row]:
        """The complete rows of the file, without one that a kill truncated."""
        with self.path.open(newline="") as file:
            whole = [line for line in file if line.endswith("\n")]
        return [row for row in csv.DictReader(whole) if row["step"].isdigit()]

    def _rewrite(self, rows: list[Row]) -> None:
        """Replace the file atomically."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        with replacing(self.path) as file:
            file.write(text.getvalue().encode())
        self.row_begins = self.path.stat().st_size


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every column of a metrics.csv, NaN where a step has no value."""
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    figures = np.array([[float(figure or "nan") for figure in row] for row in rows])
    return dict(zip(names, figures.T, strict=True))
