import csv
from pathlib import Path

import numpy as np

from makemoe.tracking.csv_logger import MetricsCSV, read_columns


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_figures_of_a_step_share_a_row_and_are_there_at_once(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path / "run")
    logger.log_metrics({"loss": 0.5, "epoch": 0}, step=5)
    assert rows(tmp_path / "run") == [{"step": "5", "loss": "0.5"}]
    logger.log_metrics({"loss": 0.25}, step=10)
    logger.log_metrics({"loss": 0.125}, step=10)
    assert rows(tmp_path / "run")[1:] == [{"step": "10", "loss": "0.125"}]


def test_a_late_column_is_added_to_the_whole_file(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.log_metrics({"loss": 2.0}, step=2)
    logger.log_metrics({"val": 3.0, "a": 4.0}, step=2)
    logger.log_metrics({"a": 5.0}, step=3)
    assert rows(tmp_path) == [
        {"step": "1", "loss": "1", "a": "", "val": ""},
        {"step": "2", "loss": "2", "a": "4", "val": "3"},
        {"step": "3", "loss": "", "a": "5", "val": ""},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_replaces_later_rows(tmp_path: Path) -> None:
    first = MetricsCSV(tmp_path)
    for step in (5, 10, 15, 20):
        first.log_metrics({"loss": float(step)}, step=step)
    resumed = MetricsCSV(tmp_path, resume_step=10)
    resumed.log_metrics({"loss": 0.0, "new": 1.0}, step=15)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        *(("5", "5"), ("10", "10"), ("15", "0"))
    ]
    assert [row["new"] for row in rows(tmp_path)] == ["", "", "1"]


def test_a_run_resumed_at_a_step_that_is_logged_again_has_it_once(tmp_path: Path) -> None:
    MetricsCSV(tmp_path).log_metrics({"loss": 1.0}, step=10)
    MetricsCSV(tmp_path, resume_step=10).log_metrics({"val": 2.0}, step=10)
    assert [row["step"] for row in rows(tmp_path)] == ["10"]
    assert rows(tmp_path)[0]["val"] == "2"
    assert rows(tmp_path)[0]["loss"] == "1"


def test_a_row_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    first = MetricsCSV(tmp_path)
    first.log_metrics({"loss": 1.0}, step=1)
    first.log_metrics({"loss": 2.0}, step=2)
    whole = (tmp_path / "metrics.csv").read_bytes()
    for cut in range(1, 6):
        (tmp_path / "metrics.csv").write_bytes(whole[:-cut])
        MetricsCSV(tmp_path, resume_step=2).log_metrics({"loss": 3.0}, step=3)
        assert [row["step"] for row in rows(tmp_path)] == ["1", "3"]


def test_a_new_run_begins_a_new_file(tmp_path: Path) -> None:
    MetricsCSV(tmp_path).log_metrics({"old": 1.0}, step=1)
    MetricsCSV(tmp_path).log_metrics({"loss": 1.0}, step=2)
    assert rows(tmp_path) == [{"step": "2", "loss": "1"}]


def test_resuming_where_no_file_was_left(tmp_path: Path) -> None:
    MetricsCSV(tmp_path, resume_step=7).log_metrics({"loss": 1.0}, step=8)
    assert rows(tmp_path) == [{"step": "8", "loss": "1"}]
    (tmp_path / "metrics.csv").write_bytes(b"")
    MetricsCSV(tmp_path, resume_step=7).log_metrics({"loss": 1.0}, step=8)
    assert rows(tmp_path) == [{"step": "8", "loss": "1"}]


def test_columns_are_read_with_gaps(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"loss": 0.5}, step=5)
    logger.log_metrics({"loss": float("nan"), "val": 2.0}, step=10)
    columns = read_columns(logger.path)
    assert list(columns) == ["step", "loss", "val"]
    np.testing.assert_array_equal(columns["step"], [5, 10])
    np.testing.assert_array_equal(columns["loss"], [0.5, np.nan])
    np.testing.assert_array_equal(columns["val"], [np.nan, 2])
