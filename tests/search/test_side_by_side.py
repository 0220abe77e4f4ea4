"""Runs side by side, of a program that stands for `makemoe fit`."""

import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stops import stopped_after

from makemoe.errors import UsageError
from makemoe.locks import Lock
from makemoe.run import logged_losses
from makemoe.search import runs as runs_module
from makemoe.search import side_by_side as side_by_side_module
from makemoe.search.folder import digest
from makemoe.search.plan import Timing, Variant
from makemoe.search.runs import Run
from makemoe.search.side_by_side import SideBySide

TIMING = Timing(0.0, 0.1, 0.0)
VARIANT = Variant("a", "a", (), {}, 10, 10, 60, 8, 10, 1, TIMING)


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    command = (sys.executable, str(Path(__file__).parent / "stub_fit.py"))
    monkeypatch.setattr(runs_module, "COMMAND", command)
    return


def beside(runs: list[Run], jobs: int = 1) -> SideBySide:
    return SideBySide(runs, jobs, dict(os.environ))


@pytest.mark.parametrize("jobs", [1, 2])
def test_as_many_runs_train_at_the_same_time_as_there_are_jobs(tmp_path: Path, jobs: int) -> None:
    runs = [Run(tmp_path, VARIANT, seed) for seed in (1, 2)]
    beside(runs, jobs).train(lambda: None)
    assert [run.status for run in runs] == ["finished", "finished"]
    begins = [(run.folder / ".lock").stat().st_mtime for run in runs]
    ends = [(run.folder / "last.ckpt").stat().st_mtime for run in runs]
    assert (max(begins) < min(ends)) == (jobs == 2)


def test_a_failing_run_stops_no_other_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = replace(VARIANT, name="b", folder="b", words=("--fails=yes",))
    dies = replace(VARIANT, name="c", folder="c", words=("--dies=yes",))
    runs = [Run(tmp_path, variant, 1) for variant in (fails, dies, VARIANT)]
    beside(runs).train(lambda: None)
    assert [run.status for run in runs] == ["failed", "failed", "finished"]
    assert runs[0].why == "the loss is not finite at step 2"
    assert runs[1].why == f"ended by SIGKILL; see {tmp_path / 'c' / 'seed-1.log'}"
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("1 of 3: b, seed 1: failed: the loss is not finite at step 2; about")
    assert re.fullmatch(r"3 of 3: a, seed 1: val_loss 1.1000 in \d s", lines[2])


def test_a_stopped_run_goes_on_and_a_finished_one_is_not_repeated(tmp_path: Path) -> None:
    runs = [Run(tmp_path, VARIANT, seed) for seed in (1, 2)]
    stopper = beside(runs)
    with stopped_after(runs[1].folder, 3):
        stopper.train(lambda: None)
    assert stopper.stopped_by == signal.SIGTERM
    assert [run.status for run in runs] == ["finished", "stopped"]
    written = (runs[0].folder / "last.ckpt").stat().st_mtime_ns
    again = [Run(tmp_path, VARIANT, seed) for seed in (1, 2)]
    beside(again).train(lambda: None)
    assert [run.status for run in again] == ["finished", "finished"]
    assert (runs[0].folder / "last.ckpt").stat().st_mtime_ns == written
    steps = [step for step, _ in logged_losses(runs[1].folder)]
    assert steps == list(range(1, 11))  # no step was repeated
    assert again[1].seconds > runs[1].seconds


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    run = Run(tmp_path, VARIANT, 1)
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.csv").write_text("step,val_loss\n1,9.0\n")
    beside([run]).train(lambda: None)
    assert [step for step, _ in logged_losses(run.folder)] == list(range(1, 11))


def test_a_run_that_another_process_trains_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, VARIANT, 1)
    run.folder.mkdir(parents=True)
    lock = Lock(run.folder / ".lock")
    assert lock.take()
    thread = threading.Timer(0.5, lambda: lock.release(remove=True))
    thread.start()
    beside([run]).train(lambda: None)
    thread.join()
    assert run.is_finished
    assert "waiting for" in capsys.readouterr().err


def test_the_rest_is_estimated_from_the_runs_that_have_ended(tmp_path: Path) -> None:
    runs = [Run(tmp_path, VARIANT, seed) for seed in (1, 2, 3)]
    assert beside(runs).left() == pytest.approx(3.0)
    assert beside(runs, 2).left() == pytest.approx(2.0)
    runs[0].status, runs[0].seconds = "finished", 4.0
    assert beside(runs).left() == pytest.approx(8.0)
    unknown = [Run(tmp_path, replace(VARIANT, timing=None), seed) for seed in (1, 2)]
    assert beside(unknown).left() is None
    # Of the others, it is assumed that they take as long as those that could be measured.
    assert beside([*unknown, runs[1]]).left() == pytest.approx(3.0)


def test_the_rest_is_not_estimated_from_runs_that_were_started_again(tmp_path: Path) -> None:
    runs = [Run(tmp_path, VARIANT, seed) for seed in (1, 2, 3)]
    with stopped_after(runs[0].folder, 3):
        beside(runs[:1]).train(lambda: None)
    beside(runs[:1]).train(lambda: None)
    assert runs[0].is_finished
    assert Run(tmp_path, VARIANT, 1).starts == runs[0].starts == 2
    runs[0].seconds = 40.0  # of 1 s as estimated
    assert beside(runs).left() == pytest.approx(2.0)
    runs[1].status, runs[1].seconds, runs[1].starts = "finished", 3.0, 1
    assert beside(runs).left() == pytest.approx(3.0)


def test_the_count_of_ended_runs_neither_skips_nor_repeats_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side_module, "POLL_S", 2.0)  # both have ended by then
    fails = replace(VARIANT, words=("--fails=yes",))
    for _ in range(2):  # what failed is tried again
        runs = [Run(tmp_path, fails, seed) for seed in (1, 2)]
        beside(runs, 2).train(lambda: None)
        counts = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
        assert counts == ["1 of 2", "2 of 2"]


def test_a_finished_run_without_its_folder_is_trained_again(tmp_path: Path) -> None:
    run = Run(tmp_path, VARIANT, 1)
    beside([run]).train(lambda: None)
    assert Run(tmp_path, VARIANT, 1).is_finished
    shutil.rmtree(run.folder)
    assert not Run(tmp_path, VARIANT, 1).is_finished


def test_a_config_that_changes_meanwhile_is_not_trained(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("seed: 1")
    variant = replace(VARIANT, configs={str(config): digest(config)})
    runs = [Run(tmp_path, variant, seed) for seed in (1, 2)]
    with pytest.raises(UsageError, match=r"my\.yaml has changed while the runs were trained"):
        beside(runs).train(lambda: config.write_text("seed: 2"))
    assert [run.status for run in runs] == ["finished", "new"]
    config.write_text("seed: 1")
    beside(runs).train(lambda: None)
    assert [run.status for run in runs] == ["finished", "finished"]
