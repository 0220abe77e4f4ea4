"""A class has its own defaults, not those of the class that it replaces."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import Ended

Call = Callable[..., Ended]


def settings(makemoe: Call, *flags: str) -> Any:
    ended = makemoe("fit", *flags, "--print_config")
    assert ended.status == 0, ended
    return yaml.safe_load(ended.out)["model"]


@pytest.mark.parametrize(
    ("option", "name", "arguments"),
    [
        ("optimizer", "AdamW", {"lr": 1e-3, "weight_decay": 0.01}),
        ("optimizer", "SGD", {"lr": 1e-3, "weight_decay": 0.0}),
        ("optimizer", "Muon", {"lr": 0.02, "adamw_lr": 3e-3, "betas": [0.9, 0.999]}),
        ("experts", "GatedExperts", {"bias": False, "activation": "silu"}),
        ("norm", "RMSNorm", {"eps": 1e-6}),
    ],
)
@pytest.mark.parametrize("in_file", [False, True], ids=["flag", "file"])
def test_a_class_that_is_named_has_its_own_defaults(
    makemoe: Call, option: str, name: str, arguments: dict[str, Any], in_file: bool
) -> None:
    flags = [f"--model.{option}={name}"]
    if in_file:
        Path("my.yaml").write_text(f"model: {{{option}: {{class_path: {name}}}}}")
        flags = ["--config=my.yaml"]
    given = settings(makemoe, *flags)[option]
    assert given["class_path"].endswith(f".{name}")
    assert {key: given["init_args"][key] for key in arguments} == arguments


def test_what_the_user_has_set_is_kept_when_the_class_changes(makemoe: Call) -> None:
    Path("my.yaml").write_text(
        "model: {optimizer: {class_path: AdamW, init_args: {lr: 0.3, amsgrad: true}}}"
    )
    given = settings(makemoe, "--config=my.yaml", "--model.optimizer=SGD")["optimizer"]
    assert (given["init_args"]["lr"], given["init_args"]["weight_decay"]) == (0.3, 0.0)
    given = settings(makemoe, "--model.optimizer.lr=0.7", "--model.optimizer=SGD")["optimizer"]
    assert given["init_args"]["lr"] == 0.7
