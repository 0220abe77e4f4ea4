"""The settings in docs/averaging.md train an average that the other commands find."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import TINY, Ended, script

from makemoe.checkpoint.format import read

DOCS = (Path(__file__).parents[2] / "docs" / "averaging.md").read_text()


@pytest.fixture
def makemoe_in(tmp_path: Path, makemoe: Callable[..., Ended]) -> Callable[..., Ended]:
    (snippet,) = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    (tmp_path / "averaged.yaml").write_text(snippet)
    ended = script("fit", "--config=averaged.yaml", *TINY, "--run.name=run", cwd=tmp_path)
    assert ended.status == 0, ended.err
    return makemoe


def test_the_docs_settings_train_an_average_that_every_command_finds(
    tmp_path: Path, makemoe_in: Callable[..., Ended]
) -> None:
    held = read(tmp_path / "checkpoints" / "run" / "best.ckpt")
    assert held["averaging"]["steps"] == held["global_step"] == 20
    head = held["averaging"]["trained"]["net.head.weight"]
    assert not torch.equal(head, held["state_dict"]["net.head.weight"])

    lines = (tmp_path / "checkpoints" / "run" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("val_loss")
    loss = f"{float([line.split(',')[column] for line in lines[1:]][-1]):.4f}"
    for command in ("validate", "inspect"):
        ended = makemoe_in(command, "--ckpt_path", "best")
        assert f"val_loss {loss} nats" in " ".join(ended.out.split()), ended
    assert "ExponentialAverage (decay 0.99, start_step 0)" in " ".join(ended.out.split())
    assert "the average of those after 20 steps" in ended.out

    sampled = (tmp_path / "checkpoints" / "run" / "samples.txt").read_text()
    seed = ("--seed", "1337", "--max_new_tokens", "8", "--prompt", "\n")
    ended = makemoe_in("predict", "--ckpt_path", "last", *seed)
    assert sampled.endswith(f"==== step 20\n{ended.out.removesuffix(chr(10))}\n\n")


def test_averaging_is_dropped_on_request_and_taken_up_again(
    tmp_path: Path, makemoe_in: Callable[..., Ended]
) -> None:
    last = tmp_path / "checkpoints" / "run" / "last.ckpt"

    def resumed(step: int, *more: str) -> str:
        steps = ("--trainer.max_steps", str(step))
        ended = script("fit", "--ckpt_path=last", *steps, *more, cwd=tmp_path)
        assert ended.status == 0, ended.err
        return ended.err

    assert "average of the weights" not in resumed(22)
    assert read(last)["averaging"]["steps"] == 22
    assert "the checkpoint's average of the weights is not continued\n" in resumed(
        24, "--model.averaging=null"
    )
    assert "averaging" not in read(last)
    anew = ("--model.averaging=EqualAverage", "--model.averaging.start_step=3")
    assert "no average of the weights: it begins after step 24\n" in resumed(26, *anew)
    assert read(last)["averaging"]["steps"] == 2
