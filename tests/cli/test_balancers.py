"""Balancers as a user names them: on the command line, in YAML, in a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Ended

BALANCED = (*TINY, "--model.router=BiasedTopKRouter", "--model.balancers+=BiasBalance")


def test_balancers_are_in_the_checkpoint_and_nothing_of_them_in_val_loss(
    makemoe: Callable[..., Ended], tmp_path: Path
) -> None:
    loud = ("--model.balancers+=SwitchLoss", "--model.balancers.weight=50", "--run.name=loud")
    assert makemoe("fit", *BALANCED, *loud).status == 0
    config = (tmp_path / "checkpoints" / "loud" / "config.yaml").read_text()
    assert "makemoe.training.balance.BiasBalance" in config
    with_them = makemoe("validate", "--ckpt_path=last")
    assert with_them.status == 0, with_them.err
    assert with_them.out == makemoe("validate", "--ckpt_path=last", "--model.balancers=[]").out
    assert float(with_them.out.split()[1]) < 10  # not the 50 or more that the loss adds
    sampled = makemoe("predict", "--ckpt_path=last", "--max_new_tokens=5")
    assert sampled.status == 0, sampled.err


def test_balancers_are_listed_in_yaml_by_name_or_with_settings(
    makemoe: Callable[..., Ended], tmp_path: Path
) -> None:
    (tmp_path / "b.yaml").write_text(
        "model:\n  balancers: [SwitchLoss, {class_path: ZLoss, init_args: {weight: 0.5}}]\n"
    )
    printed = makemoe("fit", "--config=b.yaml", "--print_config").out
    assert "class_path: makemoe.training.balance.SwitchLoss" in printed
    assert "weight: 0.5" in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model.balancers+=SwitchLos", "unknown class SwitchLos"),
        ("--model.balancers+=SwitchLoss --model.balancers.wieght=1", "did you mean weight?"),
        (
            "--model.balancers+=SwitchLoss --model.balancers.weight=-1",
            "SwitchLoss weight -1.0 must be a finite number of 0 or more",
        ),
        (
            "--model.balancers+=BiasBalance --model.balancers.calibration_tokens=-1",
            "BiasBalance calibration_tokens -1 must be a finite number of 0 or more: use 65536",
        ),
        ("--model.balancers+=BiasBalance", "use --model.router BiasedTopKRouter"),
        ("--model.balancers+=LoadLoss", "use --model.router NoisyTopKRouter"),
        ("--model.balancers+=ZLoss --model.balancers+=ZLoss", "a class is given twice"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_leaves_nothing(
    makemoe: Callable[..., Ended], tmp_path: Path, flags: str, words: str
) -> None:
    ended = makemoe("fit", *TINY, *flags.split())
    assert ended.status == 2
    assert words in ended.error
    assert not list(tmp_path.iterdir())
