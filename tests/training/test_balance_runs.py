"""Balanced runs: on one process and on two, stopped and resumed, validated often and seldom."""

import csv
from pathlib import Path
from statistics import mean

import pytest
import torch
from processes import TINY, assert_same_run, fit
from ranks import fit_in_two

# 15 windows do not split evenly in two; a step is two batches; no noise, which differs by process.
BALANCED = (
    *TINY,
    "--model.router=BiasedTopKRouter",
    "--model.balancers+=BiasBalance",
    "--model.balancers.calibration_tokens=4000",
    "--model.balancers+=SwitchLoss",
    "--model.balancers.weight=0.1",
    "--model.balancers+=ImportanceLoss",
    "--model.balancers.weight=0.1",
    "--model.balancers+=ZLoss",
    "--data.batch_size=15",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.max_steps=21",
)
UNCALIBRATED = tuple(
    "--model.balancers.calibration_tokens=0" if "tokens=4000" in a else a for a in BALANCED
)
BIASES = [f"net.blocks.{layer}.moe.router.bias_E" for layer in (0, 1)]
SHIFTS = [f"net.blocks.{layer}.moe.router.eval_shift_E" for layer in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    return fit(tmp_path_factory.mktemp("one"), *BALANCED, "--run.name=run") / "run"


def columns(run: Path, *names: str) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) for name in names if row[name]]


def test_two_processes_balance_as_one_does(one: Path, tmp_path: Path) -> None:
    two = fit_in_two(tmp_path, *BALANCED, "--run.name=run") / "run"
    a, b = (torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (one, two))
    for name in BIASES:
        assert a[name].abs().max() > 0.002
        assert torch.equal(a[name], b[name])
    for name in ("SwitchLoss", "ImportanceLoss", "ZLoss"):
        values = columns(one, f"balance/{name}")
        assert len(values) == 4
        assert values == pytest.approx(columns(two, f"balance/{name}"), abs=1e-4)
    losses = columns(one, "train_loss", "val_loss")
    assert losses == pytest.approx(columns(two, "train_loss", "val_loss"), abs=1e-4)
    for name in SHIFTS:
        assert a[name].abs().max() > 0
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)


def test_weights_are_logged_beside_raw_values(one: Path) -> None:
    assert columns(one, "balance/SwitchLoss_weight") == pytest.approx([0.1] * 4)
    assert columns(one, "balance/ZLoss_weight") == pytest.approx([0.001] * 4)
    assert columns(one, "balance/BiasBalance_update_rate") == pytest.approx([0.001] * 4)


def test_a_balanced_run_resumes_to_the_same_weights_and_biases_bit_for_bit(
    one: Path, tmp_path: Path
) -> None:
    fit(tmp_path, *BALANCED, "--trainer.max_steps=7", "--run.name=run")
    runs = fit(tmp_path, "--ckpt_path=last", "--trainer.max_steps=21")
    assert_same_run(one / "last.ckpt", runs / "run" / "last.ckpt")


@pytest.fixture(scope="module")
def uncalibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without calibration, validated more often."""
    often = ("--trainer.val_check_interval=4", "--run.name=run")
    return fit(tmp_path_factory.mktemp("uncalibrated"), *UNCALIBRATED, *often) / "run"


def test_neither_validation_nor_calibration_changes_the_training(
    one: Path, uncalibrated: Path
) -> None:
    assert_same_run(one / "last.ckpt", uncalibrated / "last.ckpt", but=SHIFTS)
    state = torch.load(uncalibrated / "last.ckpt", weights_only=True)["state_dict"]
    assert all(state[name].abs().max() == 0 for name in SHIFTS)


def test_calibrated_loads_are_even_on_a_text_never_trained_on(
    one: Path, uncalibrated: Path
) -> None:
    calibrated, left_alone = (columns(r, "val_router/max_vio") for r in (one, uncalibrated))
    assert max(calibrated) < mean(left_alone) / 2
