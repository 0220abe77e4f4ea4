"""Dense layers, shared experts and parts of a user's own, from fit to predict."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Ended, refused, script

from makemoe.checkpoint.inference import load_for_inference
from makemoe.model.feed_forward import DenseLayer, SharedExperts

Call = Callable[..., Ended]
NAME = "--run.name=mine"
THREE = "--model.n_layer=3"
OWN = """
import torch
from makemoe.model.norm import Norm
from makemoe.model.positions import Positions

class Scale(Norm):
    def __init__(self, n_embd: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.scale_D = torch.nn.Parameter(torch.ones(n_embd))

    def forward(self, input):
        return input * (input.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.scale_D

class Rotary(Positions):
    def __init__(self, block_size: int, n_embd: int, n_head: int, base: float = 100.0) -> None:
        super().__init__()
        pairs = n_embd // n_head // 2
        angle_Td = torch.arange(block_size)[:, None] * base ** (-torch.arange(pairs) / pairs)
        self.register_buffer("angle_Td", angle_Td, persistent=False)

    def turn(self, positions_BT):
        angle_B1Td = self.angle_Td[positions_BT][:, None]
        cos, sin = angle_B1Td.cos(), angle_B1Td.sin()
        def turned(x_BHTd):
            a, b = x_BHTd.chunk(2, -1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
        return turned
"""


def logged(name: str = "mine") -> dict[str, str]:
    with Path(f"checkpoints/{name}/metrics.csv").open() as file:
        *_, last = csv.DictReader(file)
    return last


def test_a_norm_and_positions_of_a_user_s_train_resume_and_sample(
    makemoe: Call, tmp_path: Path
) -> None:
    (tmp_path / "stranger.py").write_text(OWN)
    own = ("--model.norm=stranger.Scale", "--model.norm.eps=0.001")
    own += ("--model.positions=stranger.Rotary", "--model.positions.base=50.0")
    ended = script("fit", *TINY, NAME, *own, cwd=tmp_path)
    assert ended.status == 0, ended.err
    sampling = ("predict", "--ckpt_path=last", "--max_new_tokens=40", "--temperature=0")
    refused(makemoe, 1, ["stranger.Scale", "--trust stranger"], *sampling)
    for command in (sampling, ("validate", "--ckpt_path=best"), ("inspect", "--ckpt_path=last")):
        ended = makemoe(*command, "--trust", "stranger")
        assert ended.status in (0, 3), ended.err
    assert "norm stranger.Scale (eps 0.001)" in " ".join(ended.out.split())
    resumed = ("fit", "--ckpt_path=last", "--trainer.max_steps=22", "--trust=stranger")
    ended = script(*resumed, cwd=tmp_path)
    assert ended.status == 0, ended.err


def test_layers_that_are_dense_have_no_figures_and_the_others_keep_their_numbers(
    makemoe: Call,
) -> None:
    parts = ("--model.dense_layers=[1]", "--model.shared_experts=1", "--model.dense_width=2")
    balanced = ("--model.balancers=[SwitchLoss]", "--run.pictures=true")
    ended = makemoe("fit", *TINY, NAME, THREE, *parts, *balanced)
    assert ended.status == 0, ended.err
    names = {name.split("/")[1] for name in logged() if "/layer_" in name}
    assert names == {"layer_0", "layer_2"}
    assert {path.stem for path in Path("checkpoints/mine/pictures").iterdir()} == {
        *("characters", "coactivation", "curves", "load")
    }
    model, _ = load_for_inference("checkpoints/mine/last.ckpt")
    kinds = [type(block.moe) for block in model.blocks]  # type: ignore[union-attr]
    assert kinds == [SharedExperts, DenseLayer, SharedExperts]

    told = json.loads(makemoe("inspect", "--ckpt_path=last", "--json").out)
    assert told["routers"] == [0, 2]
    assert {name.split("/")[0] for name in told["val_router"] if "/" in name} == names
    assert told["val_router"] == pytest.approx(
        {name: float(logged()[f"val_router/{name}"]) for name in told["val_router"]}, abs=1e-6
    )
    shown = makemoe("inspect", "--ckpt_path=last").out
    cells = [line.removesuffix(" !").split() for line in shown.splitlines()]
    rows = [row[0] for row in cells if len(row) == 10 and row[0].isdigit()]
    assert rows == ["0", "2"]
    assert "of 6 experts dead" in " ".join(shown.split())
    assert "of 2 routers collapsed" in " ".join(shown.split())


def test_experts_of_a_dense_layer_cannot_be_shown(makemoe: Call) -> None:
    ended = makemoe("fit", *TINY, NAME, THREE, "--model.dense_layers=[1]")
    assert ended.status == 0, ended.err
    sampling = ("predict", "--ckpt_path=last", "--max_new_tokens=5")
    ended = makemoe(*sampling, "--show_experts=1")
    assert ended.status == 2
    assert ended.out == ""
    assert ended.error == ("--show_experts 1: this layer is dense, without a router; give 0, 2")
    ended = makemoe(*sampling, "--show_experts=2", "--trace=trace.jsonl")
    assert ended.status == 0, ended.err
    lines = [json.loads(line) for line in Path("trace.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        first, second, third = line["layers"]
        assert second is None
        assert len(first["experts"]) == len(third["experts"]) == 2


def test_a_model_without_any_router_trains_draws_resumes_and_is_inspected(makemoe: Call) -> None:
    ended = makemoe("fit", *TINY, NAME, "--model.dense_layers=[0]", "--run.pictures=true")
    assert ended.status == 0, ended.err
    assert "(no router)" in ended.err
    assert not any("router" in name for name in logged())
    assert [path.name for path in Path("checkpoints/mine/pictures").iterdir()] == ["curves.png"]
    ended = makemoe("fit", "--ckpt_path=last", "--trainer.max_steps=22")
    assert ended.status == 0, ended.err
    ended = makemoe("validate", "--ckpt_path=last")
    assert ended.status == 0, ended.err
    ended = makemoe("inspect", "--ckpt_path=last")
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[-1] == "healthy: no layer has a router"
    told = json.loads(makemoe("inspect", "--ckpt_path=last", "--json").out)
    assert (told["routers"], told["val_router"], told["healthy"]) == ([], {}, True)
    sampling = ("predict", "--ckpt_path=last", "--max_new_tokens=5")
    ended = makemoe(*sampling, "--show_experts=0")
    assert (ended.status, ended.error) == (
        2,
        "--show_experts 0: this layer is dense, without a router; no layer has one",
    )
    assert makemoe(*sampling).status == 0


def test_a_balancer_without_a_router_is_refused(makemoe: Call) -> None:
    alone = ("--model.dense_layers=[0]", "--model.balancers=[SwitchLoss]")
    words = ["no layer has a router to balance", "--model.dense_layers"]
    refused(makemoe, 2, words, "fit", *TINY, *alone)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.dense_layers=[1]", ["dense_layers 1", "0 to 0"]),
        ("--model.dense_layers=[x]", ["dense_layers", "x"]),
        ("--model.shared_experts=-1", ["shared_experts -1", "0 or more"]),
        ("--model.norm=TopKRouter", ["--model.norm", "TopKRouter"]),
    ],
)
def test_wrong_parts_are_refused_in_one_line(makemoe: Call, option: str, words: list[str]) -> None:
    refused(makemoe, 2, words, "fit", *TINY, option)
