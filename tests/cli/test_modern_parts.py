"""A model of all the newer parts at once, from fit to predict."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import TINY, Ended, imports, script

from makemoe.checkpoint.format import read
from makemoe.checkpoint.inference import load_for_inference
from makemoe.model.experts import GatedExperts
from makemoe.model.norm import RMSNorm
from makemoe.model.positions import RotaryPositions

Call = Callable[..., Ended]
MODERN = """
model:
  norm: RMSNorm
  positions: {class_path: RotaryPositions, init_args: {base: 500.0}}
  attention:
    class_path: CausalSelfAttention
    init_args: {qk_norm: {class_path: RMSNorm, init_args: {eps: 0.001}}, bias: false}
  experts: {class_path: GatedExperts, init_args: {hidden: 12}}
  shared_experts: 1
  dense_layers: [0]
  dense_width: 2
  tied_embeddings: true
  init: {class_path: ZeroOutputs, init_args: {scheme: {class_path: FanInNormal}}}
  router: BiasedTopKRouter
  balancers: [BiasBalance, ZLoss]
  optimizer: Muon
  param_groups: MuonMatrices
  embd_dropout: 0.1
  expert_dropout: 0.1
"""
FIT = ("fit", "--config=modern.yaml", *TINY, "--model.n_layer=2", "--run.name=mine")


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which such a model was trained, with pictures; not to be written to."""
    folder = tmp_path_factory.mktemp("modern")
    (folder / "modern.yaml").write_text(MODERN)
    ended = script(*FIT, "--run.pictures=true", cwd=folder)
    assert ended.status == 0, ended.err
    return folder


@pytest.fixture
def checkpoint(modern: Path) -> str:
    return str(modern / "checkpoints" / "mine" / "last.ckpt")


def test_its_pictures_are_drawn(modern: Path) -> None:
    drawn = {path.stem for path in (modern / "checkpoints/mine/pictures").iterdir()}
    assert drawn == {"characters", "coactivation", "curves", "load"}


def test_sampling_from_it_imports_no_compiler(modern: Path, checkpoint: str) -> None:
    command = ("predict", "--ckpt_path", checkpoint, "--max_new_tokens", "5")
    status, packages = imports(*command, cwd=modern)
    assert status == 0
    assert not packages & {"sympy", "lightning"}


@pytest.mark.parametrize(
    ("router", "balancers"),
    [
        ("TopKRouter", "SwitchLoss, ImportanceLoss"),
        ("NoisyTopKRouter", "SwitchLoss, LoadLoss"),
        ("{class_path: BiasedTopKRouter, init_args: {score: softmax}}", "BiasBalance, SwitchLoss"),
    ],
)
def test_each_router_is_drawn_inspected_and_traced(
    makemoe: Call, router: str, balancers: str
) -> None:
    routed = MODERN.replace("BiasedTopKRouter", router).replace("BiasBalance, ZLoss", balancers)
    Path("modern.yaml").write_text(routed)
    few = ("--trainer.max_steps=2", "--trainer.val_check_interval=1", "--run.pictures=true")
    ended = makemoe(*FIT, *few)
    assert ended.status == 0, ended.err
    drawn = {path.stem for path in Path("checkpoints/mine/pictures").iterdir()}
    assert drawn == {"characters", "coactivation", "curves", "load"}
    told = json.loads(makemoe("inspect", "--ckpt_path=last", "--json").out)
    assert told["routers"] == [1]
    assert 0 <= told["val_router"]["layer_1/max_vio"] <= 3
    ended = makemoe("predict", "--ckpt_path=last", "--max_new_tokens=20", "--trace=trace.jsonl")
    assert ended.status == 0, ended.err
    lines = [json.loads(line) for line in Path("trace.jsonl").read_text().splitlines()]
    for _, routed_layer in (line["layers"] for line in lines if line["layers"]):
        assert sum(routed_layer["weights"]) == pytest.approx(1, abs=1e-5)


def test_inspect_tells_its_parts_and_their_arguments(makemoe: Call, checkpoint: str) -> None:
    ended = makemoe("inspect", "--ckpt_path", checkpoint)
    assert ended.status in (0, 3), ended.err
    shown = " ".join(ended.out.split())
    for words in ("RMSNorm (eps 1e-06)", "RotaryPositions (base 500", "GatedExperts (hidden 12"):
        assert words in shown
    assert "CausalSelfAttention (qk_norm RMSNorm (eps 0.001), bias False)" in shown
    told = json.loads(makemoe("inspect", "--ckpt_path", checkpoint, "--json").out)
    assert told["routers"] == [1]


def test_a_checkpoint_builds_the_same_model(checkpoint: str) -> None:
    net, _ = load_for_inference(checkpoint)
    assert net.head.weight is net.token_embedding.weight
    assert isinstance(net.position_embedding, RotaryPositions)
    block = net.blocks[1]
    assert type(block.norm_1) is RMSNorm
    assert (type(block.attention.norm_q), block.attention.norm_q.eps) == (RMSNorm, 0.001)
    assert {part.hidden for part in net.modules() if isinstance(part, GatedExperts)} == {12}
    angle = net.position_embedding.cos_TP[1].acos()
    torch.testing.assert_close(angle, 500.0 ** (-torch.arange(0, 8, 2) / 8), rtol=1e-3, atol=1e-4)


def test_its_experts_colour_and_trace_a_text_longer_than_its_context(
    makemoe: Call, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    sampling = ("predict", "--ckpt_path", checkpoint, "--max_new_tokens=50", "--show_experts=1")
    ended = makemoe(*sampling, "--trace=trace.jsonl")
    assert ended.status == 0, ended.err
    assert "\x1b[" in ended.out
    layers = [json.loads(line)["layers"] for line in Path("trace.jsonl").read_text().splitlines()]
    assert len(layers) == 50
    assert all(dense is None and len(routed["experts"]) == 2 for dense, routed in layers)


def test_the_other_commands_read_it(makemoe: Call, checkpoint: str) -> None:
    ended = makemoe("validate", "--ckpt_path", checkpoint)
    assert ended.status == 0, ended.err
    assert "val_loss" in ended.out


def test_it_resumes_bit_for_bit(modern: Path, tmp_path: Path) -> None:
    (tmp_path / "modern.yaml").write_text(MODERN)
    ended = script(*FIT, "--trainer.max_steps=13", cwd=tmp_path)
    assert ended.status == 0, ended.err
    ended = script("fit", "--ckpt_path=last", "--trainer.max_steps=20", cwd=tmp_path)
    assert ended.status == 0, ended.err
    whole, resumed = (
        read(folder / "checkpoints/mine/last.ckpt")["state_dict"] for folder in (modern, tmp_path)
    )
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--model.tied_embeddings=false", ["tied_embeddings False, checkpoint has True"]),
        ("--model.head_bias=false", ["head_bias False, checkpoint has True"]),
        ("--model.router.bias=false", ["router.bias False, checkpoint has True"]),
        ("--model.experts.hidden=16", ["experts.hidden 16, checkpoint has 12"]),
        ("--model.positions=LearnedPositions", ["LearnedPositions", "RotaryPositions"]),
        ("--model.norm=LayerNorm", ["norm makemoe.model.norm.LayerNorm", "RMSNorm"]),
        ("--model.attention.bias=true", ["attention.bias True, checkpoint has False"]),
        ("--model.attention.qk_norm=null", ["attention.qk_norm None", "RMSNorm"]),
        ("--model.shared_experts=2", ["shared_experts 2, checkpoint has 1"]),
        ("--model.dense_layers=[1]", ["dense_layers [1], checkpoint has [0]"]),
    ],
)
def test_other_parts_than_the_checkpoint_s_are_named(
    makemoe: Call, checkpoint: str, flag: str, words: list[str]
) -> None:
    arguments = (
        "fit",
        "--ckpt_path",
        checkpoint,
        "--run.name=other",
        "--trainer.max_steps=22",
        flag,
    )
    ended = makemoe(*arguments)
    assert ended.status == 1
    assert "the checkpoint has a different model" in ended.error
    for word in words:
        assert word in ended.error
