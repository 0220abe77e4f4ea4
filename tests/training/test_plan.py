import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from makemoe.errors import UsageError
from makemoe.machine import UNKNOWN, Memory
from makemoe.model import budget
from makemoe.model.block import Architecture
from makemoe.model.budget import check_memory
from makemoe.model.footprint import Footprint, footprint
from makemoe.model.transformer import MoETransformer
from makemoe.training.muon import Muon, MuonMatrices
from makemoe.training.param_groups import divided, weights_of
from makemoe.training.plan import PROCESS, Steps

GIB = 1 << 30

TRAIN = """
import pathlib, sys, torch
from torch.nn import functional as F
from makemoe.model.transformer import MoETransformer
from makemoe.training.metrics import RouterStats

def peak():
    # Not ru_maxrss, which a process inherits from its parent.
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) << 10

rows, T, D, L, E, K, V = map(int, sys.argv[1:])
x, y = torch.randint(V, (2, rows, T))
MoETransformer(V, T, 1, 1, D, E, K)(x[:1])[0].sum().backward()  # what torch needs for itself
before = peak()
model = MoETransformer(V, T, L, 1, D, E, K)
stats, optimizer = RouterStats(L, E, K), torch.optim.AdamW(model.parameters())
for _ in range(2):
    logits, routings = model(x)
    loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
    stats.update(routings)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(peak() - before)
"""


@pytest.fixture
def architecture() -> Architecture:
    return MoETransformer(65, n_layer=1, n_embd=8, block_size=16).architecture


@pytest.mark.parametrize(
    ("rows", "T", "D", "L", "E", "K", "V"),
    [(2, 32, 256, 8, 8, 2, 65), (32, 256, 64, 3, 16, 2, 1000)],
    ids=["weights", "activations"],
)
def test_training_takes_what_is_planned_and_less_than_twice_that(
    rows: int, T: int, D: int, L: int, E: int, K: int, V: int
) -> None:
    numbers = [str(n) for n in (rows, T, D, L, E, K, V)]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *numbers],
        # Without it the peak depends on what malloc keeps, and differs by a tenth from run to run.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        check=True,
        text=True,
    )
    small = MoETransformer(V, T, 1, 1, 8, E, K).architecture
    model = replace(small, n_layer=L, n_embd=D)
    machine, _ = Steps(batch_size=rows, steps=2, moments=2).needs(model, footprint(model))
    planned = machine.total - PROCESS
    assert planned > 100 << 20
    assert planned < int(done.stdout) < 2 * planned


def total(model: Architecture, **settings: Any) -> int:
    return Steps(**settings).needs(model, footprint(model))[0].total


def test_what_a_run_does_not_do_takes_nothing(architecture: Architecture) -> None:
    evaluates = total(architecture)
    assert total(architecture, batch_size=10**9) == evaluates
    assert total(architecture, eval_batch_size=10**9) == evaluates
    assert total(architecture, eval_batch_size=10**9, eval_windows=10**9) > 1 << 40
    assert total(architecture, steps=-1, batch_size=10**9) > 1 << 40
    assert total(architecture, sample_tokens=10**12) > 1 << 40


@pytest.mark.parametrize("tied", [False, True])
def test_what_muon_is_planned_to_keep_is_what_it_keeps(tied: bool) -> None:
    net = MoETransformer(4000, n_layer=2, n_embd=64, block_size=16, tied_embeddings=tied)
    optimizer = Muon(divided(MuonMatrices(), weights_of(net)))
    net(torch.zeros(1, 16, dtype=torch.int64))[0].sum().backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    kept = 4 * sum(value.numel() for value in states)
    size = footprint(net.architecture)
    planned = Steps(steps=2, moments=1, outer_moments=2).update(size)["optimizer state"]
    # Planned is the least: not counted twice are biases, norms, routers and positions.
    assert 0.97 * kept < planned <= kept


def test_an_average_takes_four_bytes_per_weight_whatever_the_weights_take(
    architecture: Architecture,
) -> None:
    weights = footprint(architecture).parameters
    for weight_bytes in (2, 4):
        plan = {"steps": 2, "weight_bytes": weight_bytes}
        took = total(architecture, averages=True, **plan) - total(architecture, **plan)
        assert took == 4 * weights
    assert total(architecture, averages=True) == total(architecture)


def test_an_evaluation_takes_no_more_than_its_text(architecture: Architecture) -> None:
    few = total(architecture, eval_batch_size=100, eval_windows=100)
    assert total(architecture, eval_batch_size=10**9, eval_windows=100) == few
    assert total(architecture, eval_batch_size=10**9, eval_windows=200) > few


def test_one_step_needs_gradients_only_when_activations_are_gone(
    architecture: Architecture,
) -> None:
    size = Footprint(parameters=10**9, buffers=0, objects=0, kept=0)
    assert total_of(architecture, size, steps=1) == 16 * 10**9 + PROCESS
    assert total_of(architecture, size, steps=2) > 16 * 10**9 + PROCESS


def total_of(model: Architecture, size: Footprint, **settings: Any) -> int:
    return Steps(batch_size=1, moments=2, **settings).needs(model, size)[0].total


def test_each_process_takes_it_all_and_a_share_of_the_batch(architecture: Architecture) -> None:
    one, two = ({"steps": 2, "batch_size": 10**6, "devices": n} for n in (1, 2))
    assert 0 < total(architecture, **two) - total(architecture, **one) < PROCESS * 1.1


def test_a_card_has_to_hold_a_step_and_the_machine_the_weights(architecture: Architecture) -> None:
    size = Footprint(parameters=10**9, buffers=0, objects=0, kept=0)
    plan = Steps(steps=2, moments=2, devices=2, card=80 * GIB, weight_bytes=2, number_bytes=2)
    machine, _, card = plan.needs(architecture, size)
    assert machine.total == 2 * (4 * 10**9 + PROCESS)
    assert card.limit == 80 * GIB
    assert 8 * 10**9 < card.total < 8.01 * 10**9
    with pytest.raises(UsageError, match="and each device has 1 MiB"):
        check_memory(architecture, replace(plan, batch_size=10**6, card=1 << 20))


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("batch_size", {"steps": 2}),
        ("eval_batch_size", {"eval_windows": 10**12}),
        ("devices", {}),
        ("num_workers", {}),
        ("sample_tokens", {}),
    ],
)
def test_a_size_of_the_run_is_named_with_one_that_fits(
    architecture: Architecture, name: str, plan: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "memory", lambda: Memory(GIB, UNKNOWN))
    with pytest.raises(UsageError) as caught:
        check_memory(architecture, Steps(**plan | {name: 10**12}))
    words = str(caught.value)
    assert words.startswith(f"{name} {10**12} takes at least ")
    assert words.endswith(" would fit")
    check_memory(architecture, Steps(**plan | {name: int(words.split()[-3])}))
