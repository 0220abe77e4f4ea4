"""Several processes at the same global batch are one run."""

import csv
from pathlib import Path

import pytest
import torch
from processes import TINY, fit
from ranks import fit_in_two

# What draws random numbers draws others on another process; 15 windows do not split evenly in two.
QUIET = (
    *TINY,
    "--trainer.max_steps=30",
    "--trainer.val_check_interval=10",  # three: drift is of one since another
    "--data.batch_size=15",
    "--data.eval_train_split=true",
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, str]], ...]:
    """metrics.csv of one process, and of two."""
    folder = tmp_path_factory.mktemp("ddp")
    fit(folder, *QUIET, "--run.name=one")
    fit_in_two(folder, *QUIET, "--run.name=two")

    def read(run: str) -> list[dict[str, str]]:
        with (folder / "checkpoints" / run / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    return read("one"), read("two")


def close(rows: tuple[list[dict[str, str]], ...], column: str, tolerance: float) -> bool:
    one, two = ([float(row[column]) for row in run if row[column]] for run in rows)
    return len(one) > 1 and one == pytest.approx(two, abs=tolerance)


def test_two_processes_give_one_process_s_training_losses(
    rows: tuple[list[dict[str, str]], ...],
) -> None:
    assert close(rows, "train_loss", 1e-5)


@pytest.mark.parametrize("loss", ["val_loss", "train_split_loss"])
def test_two_processes_give_one_process_s_exact_losses(
    rows: tuple[list[dict[str, str]], ...], loss: str
) -> None:
    assert close(rows, loss, 1e-5)


def test_figures_of_routers_are_those_of_all_processes(
    rows: tuple[list[dict[str, str]], ...],
) -> None:
    figures = {name for name in rows[0][0] if "router/" in name and not name.endswith("/drift")}
    assert len(figures) == 2 * (2 * (2 * 4 + 8) + 8 + 2)
    # 10^-3 is an assignment in a thousand: two weights that are nearly equal may change places.
    assert all(close(rows, name, 2e-3) for name in figures - {"val_router/drift"})


def test_drift_is_of_the_same_tokens_on_two_processes(
    rows: tuple[list[dict[str, str]], ...],
) -> None:
    one, two = ([row["val_router/layer_1/drift"] for row in run] for run in rows)
    assert [drift == "" for drift in one] == [drift == "" for drift in two]
    assert close(rows, "val_router/drift", 2e-3)


@pytest.mark.parametrize("order", ["position", "weight"])
def test_capacity_is_that_of_all_processes(order: str, tmp_path: Path) -> None:
    drops = (
        *("--model.capacity_factor=0.7", f"--model.drop_order={order}"),
        *("--trainer.max_steps=2", "--trainer.accumulate_grad_batches=2"),
    )
    fit(tmp_path, *QUIET, *drops, "--run.name=one")
    runs = fit_in_two(tmp_path, *QUIET, *drops, "--run.name=two")
    told = (tmp_path / "rank0.txt").read_text()
    assert "FLOPs per token, 960 tokens and " in told  # 2 steps of 2 batches of 15 x 16
    assert "drops   over 0.7 of the mean load, counted in each of a step's 2 batches" in told
    one, two = (
        torch.load(runs / run / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("one", "two")
    )
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=0, atol=1e-5)
