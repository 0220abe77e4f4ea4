"""Averaged runs: killed and resumed, from `best.ckpt` too, and on one process and two."""

import csv
import signal
from pathlib import Path

import pytest
import torch
from processes import TINY, assert_same_run, fit, start, stop_when
from ranks import fit_in_two

from makemoe.checkpoint.format import read

# A validation calibrates the biases; a step is two batches; 7 divides neither.
AVERAGED = (
    *TINY,
    "--model.averaging=ExponentialAverage",
    "--model.averaging.decay=0.8",
    "--model.averaging.start_step=4",
    "--model.router=BiasedTopKRouter",
    "--model.balancers+=BiasBalance",
    "--model.balancers.calibration_tokens=4000",
    "--data.batch_size=15",
    "--trainer.accumulate_grad_batches=2",
    "--run.save_every_n_steps=7",
)
NOISY = (*AVERAGED, "--model.dropout=0.1", "--trainer.max_steps=40")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("whole"), *NOISY, "--run.name=run") / "run"


def assert_same(one: Path, other: Path) -> None:
    """Two runs have the same average, trained weights, optimizer and samples, bit for bit."""
    assert_same_run(one / "last.ckpt", other / "last.ckpt")
    a, b = (read(run / "last.ckpt")["averaging"] for run in (one, other))
    assert a["steps"] == b["steps"] == 36
    assert a["trained"].keys() == b["trained"].keys()
    for name, weight in a["trained"].items():
        assert torch.equal(weight, b["trained"][name]), name
    assert (one / "samples.txt").read_text() == (other / "samples.txt").read_text()
    assert losses(one) == losses(other)


def losses(run: Path) -> list[tuple[str, str, str]]:
    with (run / "metrics.csv").open() as file:
        rows = csv.DictReader(file)
        return [(row["step"], row["train_loss"], row["val_loss"]) for row in rows]


def test_a_killed_run_resumes_with_its_average_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *NOISY, "--run.name=run")
    run = tmp_path / "checkpoints" / "run"
    assert stop_when(process, run / "last.ckpt", signal.SIGKILL) == -signal.SIGKILL
    assert read(run / "last.ckpt")["global_step"] < 40, "killed too late to show anything"
    fit(tmp_path, "--ckpt_path=last")
    assert_same(whole, run)


def test_a_run_resumed_from_its_best_checkpoint_ends_as_the_same(
    whole: Path, tmp_path: Path
) -> None:
    best = whole / "best.ckpt"
    assert read(best)["global_step"] == 30
    runs = fit(tmp_path, f"--ckpt_path={best}", "--run.name=run")
    assert_same_run(whole / "last.ckpt", runs / "run" / "last.ckpt")
    a, b = (read(run / "last.ckpt")["averaging"] for run in (whole, runs / "run"))
    assert a["steps"] == b["steps"]
    assert all(torch.equal(weight, b["trained"][name]) for name, weight in a["trained"].items())


def test_two_processes_average_as_one_does(tmp_path: Path) -> None:
    quiet = (*AVERAGED, "--trainer.max_steps=15")
    runs = fit(tmp_path, *quiet, "--run.name=one")
    fit_in_two(tmp_path, *quiet, "--run.name=two")
    one, two = (read(runs / name / "last.ckpt") for name in ("one", "two"))
    assert one["averaging"]["steps"] == two["averaging"]["steps"] == 11
    for a, b in (
        (one["state_dict"], two["state_dict"]),
        (one["averaging"]["trained"], two["averaging"]["trained"]),
    ):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)
    (a, b) = ([float(row[2]) for row in losses(runs / run) if row[2]] for run in ("one", "two"))
    assert len(a) == 1
    assert a == pytest.approx(b, abs=1e-4)
