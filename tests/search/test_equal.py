from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemoe.errors import UsageError
from makemoe.search.equal import (
    Asked,
    Length,
    asked_of,
    divided,
    divisor_near,
    length,
    length_words,
)
from makemoe.search.plan import Equal
from makemoe.training.work import Work


def asked(steps: int = 600, every: int = 150, tokens: int = 100, flops: int = 10) -> Asked:
    return Asked(steps, every, tokens, Work(1, 1, flops))


def settings(**changes: Any) -> dict[str, Any]:
    trainer = {"max_steps": 600, "val_check_interval": 150} | changes
    schedule = {"class_path": "X", "init_args": {"warmup_steps": 60, "total_steps": 600, "b": 2}}
    return {"trainer": trainer, "model": {"lr_scheduler": schedule}}


def test_equal_tokens_leave_the_length_alone() -> None:
    assert length(asked(), asked(), "tokens") == (600, 150)
    assert length(asked(flops=77), asked(), "tokens") == (600, 150)
    assert length_words(settings(), Length(600, 150)) == []


def test_equal_tokens_in_larger_batches_are_fewer_steps() -> None:
    assert length(asked(tokens=200), asked(), "tokens") == (300, 75)


@given(st.integers(1, 10**12), st.integers(100, 5000), st.integers(1, 20))
def test_equal_flops_are_spent_to_within_a_step_per_validation(
    flops: int, steps: int, validations: int
) -> None:
    first = asked(steps * validations, steps, 128, 1000_000)
    found = length(asked(steps * validations, steps, 128, flops), first, "flops")
    spent, wanted = found.steps * flops, first.steps * 1000_000
    assert found.steps % found.val_every == 0
    assert abs(spent - wanted) <= flops * (validations / 2 + 1)


def test_the_last_step_is_validated() -> None:
    assert divisor_near(200, 150, 1) == 200
    assert divisor_near(1000, 100, 10) == 100
    assert divisor_near(1000, 150, 7) == 125
    assert divisor_near(997, 100, 10) is None  # a prime: 1 or 997 validations
    assert divided(1201, 4) == (1200, 300)
    assert divided(10, 3) == (10, 5)  # 9 steps would be 10 % less
    assert divided(7, 100) == (7, 1)  # every step, as often as can be


@pytest.mark.parametrize(
    ("steps", "every", "found"),
    [
        (997, 100, (996, 83)),  # a prime: one validation, or 997
        (998, 10, (999, 9)),  # twice a prime: every 2 steps, or every 499
        (1000, 150, (1000, 125)),
        (997, 997, (997, 997)),
    ],
)
def test_a_run_whose_length_has_no_divisor_near_the_interval_changes_by_a_step(
    steps: int, every: int, found: tuple[int, int]
) -> None:
    one = asked(steps, every)
    assert length(one, one, "tokens") == length(one, one, "flops") == found


@given(st.integers(1, 20_000), st.integers(1, 5000), st.sampled_from(["tokens", "flops"]))
def test_variants_that_ask_for_what_the_first_asks_for_are_as_long(
    steps: int, every: int, equal: Equal
) -> None:
    one = asked(steps, every)
    first = length(one, one, equal)
    assert length(one, one._replace(steps=first.steps), equal) == first
    assert first.steps % first.val_every == 0
    wanted = max(1, round(steps / every))
    assert abs(first.steps // first.val_every - wanted) <= wanted / 2


def test_schedules_and_averages_follow_in_proportion() -> None:
    given = settings()
    given["model"]["averaging"] = {"class_path": "Y", "init_args": {"start_step": 400, "decay": 9}}
    words = length_words(given, Length(300, 75))
    assert words == [
        "--trainer.max_steps=300",
        "--model.lr_scheduler.warmup_steps=30",
        "--model.lr_scheduler.total_steps=300",
        "--model.averaging.start_step=200",
        "--trainer.val_check_interval=75",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": -1}, "max_steps -1"),
        ({"max_time": "00:01:00:00"}, "max_time"),
        ({"fast_dev_run": 3}, "fast_dev_run"),
        ({"val_check_interval": 0.5}, "val_check_interval 0.5"),
        ({"limit_val_batches": 0}, "needs validations"),
        ({"enable_checkpointing": False}, "enable_checkpointing"),
    ],
)
def test_settings_that_cannot_be_compared_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        asked_of(settings(**changes), 100, Work(1, 1, 10))
