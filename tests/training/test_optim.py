import math
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD

from makemoe.training.optim import Warmup, WarmupCosine, WarmupLinear, WarmupStableDecay

PEAK, WARMUP, TOTAL = 0.4, 10, 110
ALL = [WarmupCosine, WarmupLinear, WarmupStableDecay]


def parts(lr: float = PEAK, kind: Any = WarmupCosine, **options: float) -> tuple[SGD, Warmup]:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    sizes = {"warmup_steps": WARMUP, "total_steps": TOTAL} | options
    return optimizer, kind(optimizer, **sizes)


def rates(optimizer: SGD, schedule: Warmup, steps: int) -> list[float]:
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


def test_a_cosine_s_rates_are_these_numbers_to_the_last_bit() -> None:
    used = rates(*parts(final_share=0.2), 140)
    for step, rate in enumerate(used):
        if step < WARMUP:
            share = (step + 1) / (WARMUP + 1)
        else:
            angle = math.pi * min(1.0, (step - WARMUP) / (TOTAL - WARMUP))
            share = 0.2 + (1 - 0.2) * ((1 + math.cos(angle)) / 2)
        assert rate == PEAK * share


def test_rate_rises_to_the_peak_and_falls_along_a_line() -> None:
    used = rates(*parts(kind=WarmupLinear, final_share=0.2), 140)
    rising = [PEAK * k / 11 for k in range(1, 11)]
    falling = [PEAK * (1 - 0.8 * k / 100) for k in range(100)]
    assert used == pytest.approx([*rising, *falling, *[0.2 * PEAK] * 30])


def test_rate_rises_to_the_peak_stays_there_and_falls_along_a_line() -> None:
    used = rates(*parts(kind=WarmupStableDecay, decay_share=0.4, final_share=0.25), 140)
    rising = [PEAK * k / 11 for k in range(1, 11)]
    falling = [PEAK * (1 - 0.75 * k / 44) for k in range(44)]
    assert used == pytest.approx([*rising, *[PEAK] * 56, *falling, *[0.25 * PEAK] * 30])


@pytest.mark.parametrize(("decay_share", "begin"), [(0.0, 109), (0.5, 55), (100 / 110, 10)])
def test_the_share_of_the_decay_says_when_it_begins(decay_share: float, begin: int) -> None:
    used = rates(*parts(kind=WarmupStableDecay, decay_share=decay_share), 120)
    assert used[WARMUP : begin + 1] == [PEAK] * (begin + 1 - WARMUP)
    assert used[begin + 1] < PEAK
    assert used[TOTAL:] == pytest.approx([0.0] * 10)


def test_until_its_decay_a_stable_rate_does_not_depend_on_the_steps_in_all() -> None:
    short = rates(*parts(kind=WarmupStableDecay), 88)
    assert short == rates(*parts(kind=WarmupStableDecay, total_steps=1000), 88)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"warmup_steps": -1}, "warmup_steps -1 is negative"),
        ({"total_steps": 0, "warmup_steps": 0}, "total_steps 0 must be 1 or more"),
        ({"total_steps": 9}, "total_steps 9 must be .* warmup_steps 10 no more"),
        ({"final_share": -0.1}, "final_share -0.1 must be between 0 and 1"),
        ({"final_share": 1.1}, "final_share 1.1 must be between 0 and 1"),
        ({"final_share": math.nan}, "final_share nan must be"),
    ],
)
def test_impossible_steps_and_shares_are_refused(
    kind: Any, wrong: dict[str, float], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        parts(kind=kind, **wrong)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (-0.1, "decay_share -0.1 must be between 0 and 1"),
        (2.0, "decay_share 2.0 must be between 0 and 1"),
        (0.95, "warmup_steps 10 and decay_share 0.95 of total_steps 110 are more than all steps"),
    ],
)
def test_an_impossible_decay_is_refused(share: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parts(kind=WarmupStableDecay, decay_share=share)


def test_landmarks() -> None:
    used = rates(*parts(), 200)
    assert used[WARMUP] == max(used) == PEAK
    assert used[(WARMUP + TOTAL) // 2] == pytest.approx(0.55 * PEAK)
    assert used[TOTAL:] == pytest.approx([0.1 * PEAK] * 90)


@pytest.mark.parametrize(("warmup", "total"), [(0, 5), (0, 1), (5, 5)])
def test_degenerate_lengths_stay_within_the_peak(warmup: int, total: int) -> None:
    used = rates(*parts(warmup_steps=warmup, total_steps=total), 12)
    assert used[warmup] == PEAK
    assert used[-1] == pytest.approx(0.1 * PEAK)
    assert all(0 < rate <= PEAK for rate in used)


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        (partial(WarmupCosine, final_share=0.1), 0.55),
        (partial(WarmupLinear, final_share=0.1), 0.55),
        (partial(WarmupStableDecay, decay_share=0.8), 50 / 88),
    ],
)
def test_each_parameter_group_keeps_its_own_peak(kind: Any, share: float) -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.3)]
    optimizer = SGD(groups)
    schedule = kind(optimizer, WARMUP, TOTAL)
    for _ in range(60):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.1 * share, 0.3 * share])


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("stop", [3, 10, 60, 120])
def test_state_dict_goes_on_where_it_stopped(stop: int, kind: Any) -> None:
    whole = rates(*parts(kind=kind), 150)
    optimizer, schedule = parts(kind=kind)
    rates(optimizer, schedule, stop)
    resumed = parts(lr=9.9, kind=kind)
    resumed[0].load_state_dict(optimizer.state_dict())
    resumed[1].load_state_dict(schedule.state_dict())
    assert rates(*resumed, 150 - stop) == pytest.approx(whole[stop:])
