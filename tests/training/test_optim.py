import math

import pytest
import torch
from torch.optim import SGD

from makemoe.training.optim import WarmupCosine

PEAK, WARMUP, TOTAL = 0.4, 10, 110


def parts(lr: float = PEAK, **options: float) -> tuple[SGD, WarmupCosine]:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    sizes = {"warmup_steps": WARMUP, "total_steps": TOTAL} | options
    return optimizer, WarmupCosine(optimizer, **sizes)


def rates(optimizer: SGD, schedule: WarmupCosine, steps: int) -> list[float]:
    """The rate that each of the next steps is taken with."""
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


def test_rate_rises_to_the_peak_and_falls_by_half_a_cosine() -> None:
    used = rates(*parts(final_share=0.2), 140)
    rising = [PEAK * k / 11 for k in range(1, 11)]
    angles = [math.pi * k / 100 for k in range(100)]
    falling = [PEAK * (0.6 + 0.4 * math.cos(angle)) for angle in angles]
    assert used == pytest.approx([*rising, *falling, *[0.2 * PEAK] * 30])


def test_landmarks() -> None:
    used = rates(*parts(), 200)
    assert used[WARMUP] == max(used) == PEAK
    assert used[(WARMUP + TOTAL) // 2] == pytest.approx(0.55 * PEAK)
    assert used[TOTAL:] == pytest.approx([0.1 * PEAK] * 90)


@pytest.mark.parametrize(("warmup", "total"), [(0, 5), (0, 1), (5, 5), (5, 3)])
def test_degenerate_lengths_stay_within_the_peak(warmup: int, total: int) -> None:
    used = rates(*parts(warmup_steps=warmup, total_steps=total), 12)
    assert used[warmup] == PEAK
    assert used[-1] == pytest.approx(0.1 * PEAK)
    assert all(0 < rate <= PEAK for rate in used)


def test_each_parameter_group_keeps_its_own_peak() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.3)]
    optimizer = SGD(groups)
    schedule = WarmupCosine(optimizer, WARMUP, TOTAL)
    for _ in range(60):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.055, 0.165])


@pytest.mark.parametrize("stop", [3, 10, 60, 120])
def test_state_dict_goes_on_where_it_stopped(stop: int) -> None:
    whole = rates(*parts(), 150)
    optimizer, schedule = parts()
    rates(optimizer, schedule, stop)
    resumed = parts(lr=9.9)
    resumed[0].load_state_dict(optimizer.state_dict())
    resumed[1].load_state_dict(schedule.state_dict())
    assert rates(*resumed, 150 - stop) == pytest.approx(whole[stop:])
