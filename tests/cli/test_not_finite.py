"""A training that diverges ends in one line; a model that did is not used."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import Ended, listing
from torch import Tensor

from makemoe.checkpoint.format import read, write

Call = Callable[..., Ended]
SMALL = torch.float8_e5m2


def test_a_fit_that_diverges_names_step_layer_and_parameter_and_keeps_its_checkpoints(
    makemoe: Call, copied: Path
) -> None:
    before = {name: (copied / name).read_bytes() for name in ("last.ckpt", "best.ckpt")}
    flags = ("--model.optimizer.lr=1e30", "--trainer.max_steps=40")
    ended = makemoe("fit", "--ckpt_path=last", *flags)
    assert ended.status == 1
    for words in (
        "the loss is not finite at step 22: first in the output of blocks.0.norm_1",
        "up to 1.",
        "e+30 in ",
        "lower --model.optimizer.lr",
        "the last good checkpoint is checkpoints/tiny/last.ckpt of step 20",
    ):
        assert words in ended.error
    assert {name: (copied / name).read_bytes() for name in before} == before
    assert makemoe("predict", "--ckpt_path=last", "--max_new_tokens=5").status == 0


@pytest.mark.parametrize(
    "command", ["predict --max_new_tokens 5", "validate", "test", "inspect", "fit"]
)
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_refused(
    makemoe: Call, copied: Path, command: str, value: float
) -> None:
    checkpoint = dict(read(copied / "last.ckpt"))
    checkpoint["state_dict"]["net.head.weight"][1, 1] = value
    write(checkpoint, copied / "last.ckpt")
    before = listing(Path())
    ended = makemoe(*command.split(), "--ckpt_path=last")
    assert (ended.status, ended.out) == (1, "")
    assert "checkpoints/tiny/last.ckpt: its weight net.head.weight is not finite" in ended.error
    assert listing(Path()) == before


@pytest.mark.parametrize("weight", [torch.zeros(2, device="meta"), torch.zeros(2).to(SMALL)])
def test_weights_of_an_odd_kind_are_refused(makemoe: Call, copied: Path, weight: Tensor) -> None:
    checkpoint = dict(read(copied / "last.ckpt"))
    checkpoint["state_dict"]["net.head.weight"] = weight
    write(checkpoint, copied / "last.ckpt")
    ended = makemoe("predict", "--ckpt_path=last")
    assert (ended.status, ended.out) == (1, "")
    assert "head.weight has the type" in ended.error or "not dense" in ended.error


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("predict --max_new_tokens 5", "the model's logits are not finite"),
        ("predict --max_new_tokens 5 --temperature 0", "the model's logits are not finite"),
        ("validate", "val_loss is not finite"),
        ("test", "test_loss is not finite"),
    ],
)
def test_logits_that_are_not_finite_are_refused(
    makemoe: Call, copied: Path, command: str, says: str
) -> None:
    checkpoint = dict(read(copied / "last.ckpt"))
    checkpoint["state_dict"]["net.head.weight"].sign_().mul_(3e38)
    write(checkpoint, copied / "last.ckpt")
    ended = makemoe(*command.split(), "--ckpt_path=last")
    assert (ended.status, ended.out) == (1, "")
    assert says in ended.error
