"""The GPU's rows run the same code, here on the CPU and small."""

from itertools import accumulate

import pytest
from torch.optim import SGD

from benchmarks import machine, optimizer, router_metrics, sampling, trainer, training
from benchmarks.equality import NotEqualError
from benchmarks.measure import BF16, FLOAT32, Bench
from benchmarks.models import TINY, Size, ours, settings
from benchmarks.parallel import collectives
from benchmarks.rows import ROWS, Row
from benchmarks.serving import serving
from benchmarks.startup import predict
from makemoe.training.metrics import RouterStats
from makemoe.training.module import LanguageModel


@pytest.mark.parametrize("dtype", [FLOAT32, BF16])
def test_every_kind_of_step_runs(dtype: str) -> None:
    for train in (training.train_ours, training.train_plain, training.train_dense):
        train(TINY, "cpu", dtype)()
    for backend in ("auto", None):
        training.run_layer(TINY, "cpu", dtype, backend)()


def test_both_kinds_of_sampling_run() -> None:
    sampling.sample_ours(TINY, "cpu", 3, streams=2, threads=1)()
    sampling.sample_plain(TINY, "cpu", 3, streams=1, threads=1)()


# Without those that start several programs, and `collectives`, which is never quick:
# tests/parallel/test_traffic.py calls what it calls.
QUICK = [row for row in ROWS if row not in (predict, serving, collectives)]


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.__name__)
def test_a_quick_row_runs_from_start_to_end(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    if row.__name__ == "training_mixtral":
        pytest.importorskip("transformers", reason="the extra `bench` is not installed")
    monkeypatch.setattr(machine, "LIMITS", {})
    monkeypatch.setattr(machine, "LIMIT_S", 0.0)
    results = row(Bench(quick=True))
    assert results
    assert all(result.ours is not None for result in results)
    if row in (training.training_step, training.moe_layer, training.dense_twin):
        assert {result.dtype for result in results} == {FLOAT32, BF16}


def test_steps_of_muon_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ours(TINY)
    optimizer.check_steps(net)
    monkeypatch.setattr(optimizer, "torch_muon", lambda params, lr: SGD(params, lr))
    with pytest.raises(NotEqualError, match="Muon's step differs from torch's by"):
        optimizer.check_steps(net)


def test_mixtral_is_of_the_same_size() -> None:
    pytest.importorskip("transformers", reason="the extra `bench` is not installed")
    from benchmarks import mixtral

    assert "8.988 M (2.666 M active), Mixtral's 9.005 M (2.665 M)" in mixtral.counts(
        Size(32, 16, 8)
    )


def test_a_limit_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LIMITS", {})
    monkeypatch.setattr(machine, "LIMIT_S", 0.0)
    rates = {machine.matmul_rate("cpu", FLOAT32, (2, 8, 8, 8)) for _ in range(2)}
    assert len(rates) == len(machine.LIMITS) == 1


def test_rows_are_named_and_described() -> None:
    assert len({row.__name__ for row in ROWS}) == len(ROWS)
    assert all(row.__doc__ for row in ROWS)


def test_the_machines_name_is_a_slug() -> None:
    assert set(machine.machine_name()) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_the_figures_of_routers_are_what_steps_with_them_take_longer() -> None:
    model = LanguageModel(**settings(TINY))
    alternating = router_metrics.Alternating(model)
    alternating.begins = list(accumulate([0.0] + [3.0, 2.0] * 20))  # steps of 3 s and of 2 s
    assert alternating.difference() == (1.0, 3.0)


def test_every_second_step_goes_without_the_figures_of_routers() -> None:
    updates: list[int] = []
    with trainer.scratch_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(RouterStats, "update", lambda *_, **__: updates.append(1))
        _, whole = router_metrics.run(folder, TINY, steps=20)
    assert len(updates) == 10
    assert whole > 0
