"""Balanced runs: on one process and on two, stopped and resumed, validated often and seldom."""

import csv
from pathlib import Path

import pytest
import torch
from processes import DDP, TINY, assert_same_run, fit

# 15 windows do not split evenly in two; a step is two batches; no noise, which differs by process.
BALANCED = (
    *TINY,
    "--model.router=BiasedTopKRouter",
    "--model.balancers+=BiasBalance",
    "--model.balancers.update_rate=0.001",
    "--model.balancers+=SwitchLoss",
    "--model.balancers.weight=0.1",
    "--model.balancers+=ImportanceLoss",
    "--model.balancers.weight=0.1",
    "--model.balancers+=ZLoss",
    "--data.batch_size=15",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.max_steps=21",
)
BIASES = [f"net.blocks.{layer}.moe.router.bias_E" for layer in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    return fit(tmp_path_factory.mktemp("one"), *BALANCED, "--run.name=run") / "run"


def columns(run: Path, *names: str) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) for name in names if row[name]]


def test_two_processes_balance_as_one_does(one: Path, tmp_path: Path) -> None:
    two = fit(tmp_path, *DDP, *BALANCED, "--run.name=run") / "run"
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


def test_biases_see_no_validation_batch(one: Path, tmp_path: Path) -> None:
    runs = fit(tmp_path, *BALANCED, "--trainer.val_check_interval=4", "--run.name=run")
    assert_same_run(one / "last.ckpt", runs / "run" / "last.ckpt")
