"""The section `sweep` of a config: what it means, and what is refused."""

from typing import Any

import pytest

from makemoe.errors import UsageError
from makemoe.search.space import Dimension, read_sweep, shown, written

SPACE = {
    "model.num_experts": {"log_int": [4, 32]},
    "model.optimizer.lr": {"log": [0.001, 0.1]},
    "model.router": {"choice": ["makemoe.model.router.TopKRouter", None, {"class_path": "a.B"}]},
}


def test_a_space_is_read_in_its_order_with_kinds_and_ends() -> None:
    sweep = read_sweep({"space": SPACE, "trials": 7, "equal": "tokens"})
    experts, rate, router = sweep.space
    assert experts == Dimension("model.num_experts", "int", 4, 32, log=True)
    assert experts.ends() == [4, 32]
    assert rate.ends() == [0.001, 0.1]
    assert router.ends() == ["makemoe.model.router.TopKRouter", "null", '{"class_path": "a.B"}']
    assert experts.word(8) == "--model.num_experts=8"
    assert (sweep.trials, sweep.seeds, sweep.equal, sweep.storage) == (7, 1, "tokens", None)


def test_values_are_shown_by_short_names_and_few_digits() -> None:
    sweep = read_sweep({"space": SPACE})
    values = {
        "model.num_experts": 8,
        "model.optimizer.lr": 0.0123456,
        "model.router": "makemoe.model.router.TopKRouter",
    }
    assert shown(sweep, values) == {"num_experts": "8", "lr": "0.01235", "router": "TopKRouter"}
    assert shown(sweep, {"model.num_experts": 8}) == {"num_experts": "8"}


def test_a_choice_that_is_not_yaml_is_given_and_shown_as_it_is() -> None:
    (dimension,) = read_sweep({"space": {"a": {"choice": ["*.txt", "@b", "[x", "c.txt"]}}}).space
    assert dimension.choices == ("*.txt", "@b", "[x", "c.txt")
    sweep = read_sweep({"space": {"a": {"choice": ["*.txt", "b"]}}})
    assert shown(sweep, {"a": "*.txt"}) == {"a": "*.txt"}


@pytest.mark.parametrize(
    ("value", "word"), [(8, "8"), ("8", '"8"'), ("TopKRouter", "TopKRouter"), (None, "null")]
)
def test_a_text_that_looks_like_a_number_stays_a_text(value: Any, word: str) -> None:
    assert written(value) == word


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], ["sweep must be a mapping"]),
        ({}, ["sweep.space is empty"]),
        ({"space": {}}, ["sweep.space is empty"]),
        ({"space": [1]}, ["sweep.space must be a mapping"]),
        ({"space": SPACE, "trails": 3}, ["sweep.trails is unknown", "trials"]),
        ({"space": SPACE, "trials": 0}, ["sweep.trials 0: use 1 to"]),
        ({"space": SPACE, "seeds": 1.5}, ["sweep.seeds 1.5: use 1 to 100"]),
        ({"space": SPACE, "equal": "time"}, ["sweep.equal 'time': use flops or tokens"]),
        ({"space": SPACE, "storage": 3}, ["sweep.storage must be a URL"]),
        ({"space": SPACE, "sampler": None}, ["sweep.sampler cannot be null"]),
        ({"space": SPACE, "sampler": "GridSampler"}, ["GridSampler tries every combination"]),
        ({"space": SPACE, "sampler": "BruteForceSampler"}, ["BruteForceSampler", "compare --vary"]),
        ({"space": SPACE, "pruner": "os.system"}, ["os.system is not a class of optuna.pruners"]),
        ({"space": {"a": {"int": [1, 2], "log": [1, 2]}}}, ["sweep.space.a must be one of int"]),
        ({"space": {"a": {"range": [1, 2]}}}, ["sweep.space.a.range is unknown"]),
        ({"space": {"a": {"int": []}}}, ["sweep.space.a.int must be a list that is not empty"]),
        ({"space": {"a": {"int": [2, 1]}}}, ["[2, 1] is empty: the smallest comes first"]),
        ({"space": {"a": {"int": [1, 2.5]}}}, ["must be two whole numbers"]),
        ({"space": {"a": {"float": [1]}}}, ["must be two numbers"]),
        ({"space": {"a": {"float": [0, float("inf")]}}}, ["must be two numbers"]),
        ({"space": {"a": {"log": [0, 1]}}}, ["above 0, because ratios are searched"]),
        ({"space": {"a": {"choice": [1, 1]}}}, ["sweep.space.a.choice has 1 twice"]),
        ({"space": {"seed": {"int": [1, 9]}}}, ["sweep.space.seed: give --seeds N"]),
        ({"space": {"trainer.max_steps": {"int": [1, 9]}}}, ["as many tokens as the config says"]),
        (
            {"space": {"model.experts.init_args.hidden": {"int": [1, 9]}}},
            ["contradicts sweep.equal flops", "use equal: tokens"],
        ),
    ],
)
def test_what_is_wrong_is_named(settings: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        read_sweep(settings)
    for word in words:
        assert word in str(raised.value)
