"""What is sent, and stored, is what the formulas say; real processes count and measure it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from ranks import CALL, together

from benchmarks import processes
from makemoe.parallel.layout import Layout
from makemoe.parallel.traffic import Peers, Sizes, Step, sent_by_ddp, sent_by_sharded

SMALL = Sizes(
    others=1000,
    routed=4000,
    blocks=2,
    routed_layers=2,
    width=8,
    num_experts=16,
    top_k=2,
    told=0,
    largest=2400,
)


@pytest.mark.parametrize("processes", [2, 4])
def test_what_every_layout_sends_and_stores_is_the_formulas(processes: int, tmp_path: Path) -> None:
    calls = [[CALL, "parallel.counted", name] for name in ("check", "check_ddp")]
    together(tmp_path, processes, [*calls, [CALL, "parallel.measured", "check"]])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
def test_the_peak_of_memory_in_every_layout_is_the_formula_s(tmp_path: Path) -> None:
    together(tmp_path, 2, [[CALL, "parallel.measured", "check_peak"]])


@pytest.mark.parametrize("per_machine", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("replicate", "sharded", "experts"),
    [(1, True, 1), (2, True, 1), (8, True, 1), (1, True, 4), (2, True, 4), (1, False, 8)],
)
def test_peers_are_on_as_many_machines_as_their_numbers_say(
    per_machine: int, replicate: int, sharded: bool, experts: int
) -> None:
    layout = Layout.of(16, replicate, sharded, experts)
    sent = sent_by_sharded(SMALL, layout, Step(64))
    dense = np.arange(16).reshape(layout.replicate, layout.shard)
    sparse = np.arange(16).reshape(layout.sparse)
    groups = {
        "weights, gathered": dense,
        "weights' gradients": dense,
        "weights' gradients, copies": dense.T,
        "experts, gathered": np.moveaxis(sparse, 1, -1),
        "experts' gradients": np.moveaxis(sparse, 1, -1),
        "experts' gradients, copies": np.moveaxis(sparse, 0, -1),
        "tokens": sparse,
        "counts": sparse,
    }
    assert sent
    for one in sent:
        members = groups[one.what].reshape(-1, groups[one.what].shape[-1])
        assert one.peers.size == members.shape[1], one
        machines = max(len(set(row)) for row in members // per_machine)
        assert one.peers.machines(per_machine) == machines, one


def test_peers_that_do_not_begin_with_a_machine_may_be_on_two() -> None:
    assert Peers(3).machines(8) == 2
    assert Peers(4).machines(8) == 1


def test_one_process_sends_nothing() -> None:
    assert sent_by_ddp(SMALL, 1, Step(64)) == []
    assert sent_by_sharded(SMALL, Layout.of(1, 1, True, 1), Step(64)) == []


def test_ddp_sums_gradients_in_buckets_of_25_mebibytes_after_one_of_1() -> None:
    def buckets(mebibytes: int) -> int:
        return sent_by_ddp(SMALL._replace(others=0, routed=mebibytes << 18), 2, Step(1))[0].times

    assert [buckets(size) for size in (1, 2, 26, 27, 51)] == [1, 2, 2, 3, 3]


def test_ddp_calls_one_collective_per_step_beside_its_gradients() -> None:
    # A balance loss needs the loads of all processes before its gradient: one per batch.
    found = processes.together(2, "benchmarks.parallel", "count_collectives", (10, 20))[0]
    assert found == {
        # Processes agree on signals every tenth step; Lightning has a barrier before its sum.
        "no balancer, a batch per step": pytest.approx(0.2),
        "no balancer, 4 batches per step": pytest.approx(0.2),
        "BiasBalance, a batch per step": 1,
        "BiasBalance, 4 batches per step": 1,
        "SwitchLoss, a batch per step": 1,
        "SwitchLoss, 4 batches per step": 4,
    }
