import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD

from makemoe.errors import UsageError
from makemoe.training.optim import (
    Warmup,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
    try_schedule,
)
from makemoe.training.optim import rates as named_rates

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
        ({"total_steps": -5}, "total_steps -5 must be 1 or more"),
        ({"total_steps": 9}, "warmup_steps 10 must be no more than total_steps 9"),
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


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (TOTAL + 1, r"0 from step 110 on, .* to step 111: give .*total_steps 111$"),
        (-1, r"0 from step 110 on, .* has no last step: give .*total_steps N"),
    ],
)
def test_a_run_that_goes_on_at_a_rate_of_0_is_refused(kind: Any, steps: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        try_schedule(parts(kind=kind, final_share=0.0)[1], steps)
    try_schedule(parts(kind=kind, final_share=0.0)[1], TOTAL)
    try_schedule(parts(kind=kind, final_share=0.1)[1], steps)


def test_rates_are_told_by_the_option_they_come_from() -> None:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr, **more}
        for lr, more in [(0.5, {}), (0.25, {"method": "adamw"}), (0.5, {}), (0.125, {})]
    ]
    assert named_rates(SGD(groups)) == {"lr": 0.5, "adamw_lr": 0.25, "lr/group_3": 0.125}


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


def closed_form(kind: Any, warmup: int, total: int, decay: int, final: float) -> np.ndarray:
    """The share of the peak at each step, all at once."""
    k = np.arange(TOTAL + 40.0)
    rest = np.clip((total - k) / (total - warmup), 0, 1)
    above_final = {
        WarmupCosine: np.sin(np.pi / 2 * rest) ** 2,
        WarmupLinear: rest,
        WarmupStableDecay: np.clip((total - k) / max(decay, 1), 0, 1),
    }[kind]
    return np.where(k < warmup, (k + 1) / (warmup + 1), final + (1 - final) * above_final)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("final", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("warmup", "total", "decay_share", "decay"),
    [(10, 110, 0.2, 22), (0, 100, 0.55, 55), (45, 100, 0.55, 55), (7, 33, 0.1, 3)],
)
def test_each_group_s_rate_is_its_peak_times_the_closed_form(
    kind: Any, final: float, warmup: int, total: int, decay_share: float, decay: int
) -> None:
    more = {"decay_share": decay_share} if kind is WarmupStableDecay else {}
    peaks = np.array([0.1, 0.3, 7.0])
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in peaks.tolist()]
    optimizer = SGD(groups)
    schedule = kind(optimizer, warmup, total, final_share=final, **more)
    used = []
    for _ in range(TOTAL + 40):
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = closed_form(kind, warmup, total, decay, final)[:, None] * peaks
    np.testing.assert_allclose(used, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("stop", [3, 10, 60, 120])
def test_state_dict_goes_on_where_it_stopped_bit_for_bit(stop: int, kind: Any) -> None:
    whole = rates(*parts(kind=kind), 150)
    optimizer, schedule = parts(kind=kind)
    rates(optimizer, schedule, stop)
    resumed = parts(lr=9.9, kind=kind)
    resumed[0].load_state_dict(optimizer.state_dict())
    resumed[1].load_state_dict(schedule.state_dict())
    assert rates(*resumed, 150 - stop) == whole[stop:]
