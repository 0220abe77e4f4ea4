"""metrics.csv: every logged figure, one row a step, in a file that survives kills and resumes."""

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
    """Writes figures to `folder`/metrics.csv, the column `step` first.

    What a run that goes on from step s finds there of later steps is taken out: those steps are
    run again. A column that appears late is added to the whole file.

    Args:
        folder: of the run.
        resume_step: the step a resumed run goes on from; None: a new run.
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
        """Empty: the folder is the run's own."""
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
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add figures to the row of `step`; they are in the file when this returns."""
        if not self.columns:
            self._take_up()
        at = str(0 if step is None else int(step))
        if self.row.get("step") != at:
            self.row, self.row_begins = {"step": at}, self.path.stat().st_size
        # Steps are what is counted here; Lightning adds its epoch, which is always 0.
        figures = {name: value for name, value in metrics.items() if name != "epoch"}
        self.row |= {name: f"{float(value):.9g}" for name, value in figures.items()}
        late = sorted(self.row.keys() - set(self.columns))
        if late:
            rows = [row for row in self._rows() if row["step"] != at]
            self.columns += late
            self._rewrite(rows)
        self._write_row()

    def _take_up(self) -> None:
        """Begin the file, or go on with the one that is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.columns, rows = ["step"], []
        if self.resume_step is not None and self.path.exists():
            with self.path.open(newline="") as file:
                self.columns = next(csv.reader(file), self.columns)
            rows = [row for row in self._rows() if int(row["step"]) <= self.resume_step]
        # The step it stopped at may not have all its figures yet.
        self.row = rows.pop() if rows else {}
        self._rewrite(rows)
        if self.row:
            self._write_row()

    def _write_row(self) -> None:
        """Put the row in the place of the file's last one, or of what a kill left of it."""
        with self.path.open("r+", newline="") as file:
            file.seek(self.row_begins)
            file.truncate()
            csv.DictWriter(file, self.columns).writerow(self.row)

    def _rows(self) -> list[Row]:
        """The rows of the file; one that a kill cut short is left out."""
        with self.path.open(newline="") as file:
            whole = [line for line in file if line.endswith("\n")]
        return [row for row in csv.DictReader(whole) if row["step"].isdigit()]

    def _rewrite(self, rows: list[Row]) -> None:
        """Replace the file, whole or not at all."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        with replacing(self.path) as file:
            file.write(text.getvalue().encode())
        self.row_begins = self.path.stat().st_size


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every column of a metrics.csv, NaN where a step has no such figure."""
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    figures = np.array([[float(figure or "nan") for figure in row] for row in rows])
    return dict(zip(names, figures.T, strict=True))
