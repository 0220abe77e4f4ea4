import csv
from pathlib import Path

import numpy as np
import pytest

from makemoe.errors import CheckpointError
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


def test_counts_keep_all_their_digits(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path / "run")
    logger.log_metrics({"tokens": 1_234_567_891_234, "loss": 1 / 3}, step=1)
    assert rows(tmp_path / "run") == [
        {"step": "1", "loss": "0.333333333", "tokens": "1234567891234"}
    ]


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


# -- a file that something else has written again


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfstep,loss\r\n5,1\r\n10,2\r\n",
        b"step,loss\n5,1,more\n10,2\n",
        b"step,loss,,\n5,1,,\n10,2,,\n",
        b"step,loss\n5,1\n10,2\n" + b"9" * 5000 + b",3\n",
        b"step,loss\n5,1\n\n10,2\n",
        b"step,loss\n5,1\n10,2\n\xff,3\n",
        "step,loss\n5,1\n10,2\n\u0665,3\n".encode(),
    ],
)
def test_a_file_that_a_spreadsheet_has_saved_goes_on(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(text)
    MetricsCSV(tmp_path, resume_step=10).log_metrics({"loss": 3.0}, step=15)
    assert (tmp_path / "metrics.csv").read_bytes() == b"step,loss\r\n5,1\r\n10,2\r\n15,3\r\n"


@pytest.mark.parametrize("text", [b"\nstep,loss\n5,1\n", b"5,1\n", b"step;loss\n5;1\n"])
def test_a_file_without_the_names_of_its_columns_is_refused_and_kept(
    tmp_path: Path, text: bytes
) -> None:
    (tmp_path / "metrics.csv").write_bytes(text)
    with pytest.raises(CheckpointError, match="does not begin with the names of its columns"):
        MetricsCSV(tmp_path, resume_step=10).log_metrics({"loss": 3.0}, step=15)
    assert (tmp_path / "metrics.csv").read_bytes() == text


def test_words_and_missing_cells_are_no_figures(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss,val\n5,none,1\n10,2\n")
    columns = read_columns(tmp_path / "metrics.csv")
    np.testing.assert_array_equal(columns["loss"], [np.nan, 2])
    np.testing.assert_array_equal(columns["val"], [1, np.nan])


def test_a_resume_that_is_killed_before_its_first_row_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException): ...

    def killed(self: MetricsCSV) -> None:
        raise Killed

    first = MetricsCSV(tmp_path)
    for step in (5, 10, 15):
        first.log_metrics({"loss": float(step)}, step=step)
    monkeypatch.setattr(MetricsCSV, "_write_row", killed)
    with pytest.raises(Killed):
        MetricsCSV(tmp_path, resume_step=10).log_metrics({"loss": 15.0}, step=15)
    assert [row["step"] for row in rows(tmp_path)] == ["5", "10"]
