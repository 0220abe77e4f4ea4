"""What an export writes, and which models it refuses."""

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commandline import listing
from counterparts import GLM4, MIXTRAL, QWEN3, VOCABULARY, checkpoint_of, model_of
from modern import ALL

from makemoe.checkpoint.format import Checkpoint
from makemoe.checkpoint.inference import rebuilt
from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer
from makemoe.errors import CheckpointError, UsageError, WriteError
from makemoe.exchange import contents
from makemoe.exchange.blueprint import blueprint_of
from makemoe.exchange.export import export
from makemoe.exchange.take import take
from makemoe.model.attention import CausalSelfAttention
from makemoe.model.experts import GatedExperts
from makemoe.model.norm import RMSNorm
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, TopKRouter
from makemoe.model.transformer import MoETransformer

SIZES = {"vocab_size": 11, "block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}
OF_TRANSFORMERS = {
    *("config.json", "generation_config.json", "model.safetensors", "README.md"),
    *("tokenizer.json", "tokenizer_config.json"),
}


def refused(parts: dict[str, Any], folder: Path) -> str:
    """Why a model is not exported."""
    before = listing(folder)
    with pytest.raises(CheckpointError) as told:
        export(checkpoint_of(model_of(parts), parts), "x.ckpt", folder / "out")
    assert listing(folder) == before
    return str(told.value)


def test_all_parts_without_a_counterpart_are_named_in_one_line_that_is_not_cut(
    tmp_path: Path,
) -> None:
    """The line of an error is cut in the middle if it is longer than 360 characters."""
    words = refused(SIZES | {"router": NoisyTopKRouter}, tmp_path)
    assert words == (
        "x.ckpt: transformers has no counterpart of LayerNorm, LearnedPositions, MLPExperts, "
        "NoisyTopKRouter, the bias of attention, the bias of the output layer; the nearest is "
        "MixtralForCausalLM; `makemoe fit --config mixtral` trains a MixtralForCausalLM, and "
        "--format safetensors writes any model"
    )
    assert len(words) < 310


@pytest.mark.parametrize(
    ("base", "change", "named", "nearest"),
    [
        (MIXTRAL, {"head_bias": True}, ["the bias of the output layer"], "Mixtral"),
        (MIXTRAL, {"router": TopKRouter}, ["the bias of the gate"], "Mixtral"),
        (MIXTRAL, {"attention": CausalSelfAttention}, ["the bias of attention"], "Mixtral"),
        (MIXTRAL, {"experts": partial(GatedExperts, bias=True)}, ["biases of experts"], "Mixtral"),
        (MIXTRAL, {"top_k": 1}, ["top_k 1"], "Mixtral"),
        (MIXTRAL, {"dense_layers": [1]}, ["dense layers"], "Mixtral"),
        (MIXTRAL, {"norm": RMSNorm, "attention": QWEN3["attention"]}, ["0.01, 1e-06"], ""),
        (
            QWEN3,
            {"attention": partial(CausalSelfAttention, qk_norm=partial(RMSNorm), bias=False)},
            ["norms with several eps (1e-06, 0.01)"],
            "Qwen3Moe",
        ),
        (QWEN3, {"shared_experts": 1}, ["shared experts"], "Qwen3Moe"),
        (
            GLM4,
            {"router": partial(BiasedTopKRouter, score="softmax", bias=False)},
            ["softmax scores with a bias for the choice"],
            "Glm4Moe",
        ),
        (GLM4, {"shared_experts": 0}, ["layers without a shared expert"], "Glm4Moe"),
        (GLM4, {"dense_layers": [1]}, ["dense layers after others"], "Glm4Moe"),
        (GLM4, {"router": MIXTRAL["router"]}, ["softmax scores"], "Glm4Moe"),
    ],
)
def test_a_part_without_a_counterpart_is_named(
    base: dict[str, Any], change: dict[str, Any], named: list[str], nearest: str, tmp_path: Path
) -> None:
    words = refused(base | change, tmp_path)
    for name in named:
        assert name in words or "norms with several eps" in words
    assert f"the nearest is {nearest}" in words


@pytest.mark.parametrize("case", ALL)
def test_a_model_of_any_newer_part_is_refused_or_described_completely(case: str) -> None:
    """What a blueprint says is enough to build a model of the same weights."""
    parts = SIZES | ALL[case]
    blueprint, named = blueprint_of(MoETransformer(**parts))
    assert named
    for base in (MIXTRAL, QWEN3, GLM4):
        blueprint, named = blueprint_of(MoETransformer(**base))
        assert not named
        assert blueprint.head_size == 8


def test_the_folder_has_a_card_with_the_figures(tmp_path: Path) -> None:
    model = model_of(GLM4)
    checkpoint = checkpoint_of(model, GLM4)
    checkpoint["datamodule_hyper_parameters"] = {"corpus": "/home/me/secret/my|text.txt"}
    checkpoint["callbacks"] = {"BestCheckpoint": {"best_model_score": torch.tensor(1.23456)}}
    export(checkpoint, "x.ckpt", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == OF_TRANSFORMERS
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = 2 * 4 * 3 * 16 * 24  # of two layers, half of which are chosen
    for words in (
        f"{total:,} in total, {total - experts // 2:,} active per token",
        "| data | my\\|text.txt |",
        "1.2346 nats per token",
        "| steps | 7 |",
        "| context | 12 tokens |",
        "11 (CharTokenizer)",
        "later half of its context",
    ):
        assert words in card
    assert "secret" not in card
    head, settings = card.split("---\n")[1], card.split("```yaml\n")[1].partition("```")[0]
    assert yaml.safe_load(head)["library_name"] == "transformers"
    assert yaml.safe_load(settings)["model"]["shared_experts"] == 2


def test_bits_per_byte_are_told_where_a_token_is_a_byte(tmp_path: Path) -> None:
    parts = MIXTRAL | {"vocab_size": 256}
    checkpoint = checkpoint_of(model_of(parts), parts, ByteTokenizer())
    checkpoint["callbacks"] = {"BestCheckpoint": {"best_model_score": 0.693147}}
    export(checkpoint, "x.ckpt", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "0.6931 nats per token, 1.0000 bits per byte" in card


def test_an_average_is_what_is_exported(tmp_path: Path) -> None:
    """In a checkpoint, the average is the model; the trained weights are beside it."""
    model = model_of(MIXTRAL)
    checkpoint = checkpoint_of(model, MIXTRAL)
    trained = {name: torch.zeros_like(one) for name, one in checkpoint["state_dict"].items()}
    checkpoint["averaging"] = {"steps": 3, "trained": trained}
    export(checkpoint, "x.ckpt", tmp_path / "out")
    held = take(tmp_path / "out").checkpoint["state_dict"]
    assert torch.equal(held["net.norm.weight"], model.norm.weight)


# -- plain weights


@pytest.mark.parametrize("case", ALL)
def test_plain_weights_of_any_model_are_read_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    parts = SIZES | ALL[case]
    checkpoint = checkpoint_of(model_of(parts), parts)
    export(checkpoint, "x.ckpt", tmp_path / "out", "safetensors")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "makemoe.json", "model.safetensors"}
    taken = take(tmp_path / "out")
    assert taken.kind == "plain weights"
    held = taken.checkpoint["state_dict"]
    assert held.keys() == checkpoint["state_dict"].keys()
    assert all(torch.equal(held[name], one) for name, one in checkpoint["state_dict"].items())
    one, other = (rebuilt(c, "x")[0] for c in (checkpoint, taken.checkpoint))
    ids = torch.randint(11, (2, 12))
    assert torch.equal(one(ids)[0], other(ids)[0])


def test_plain_weights_keep_a_shift_of_evaluation_and_any_vocabulary(tmp_path: Path) -> None:
    model = model_of(GLM4, shift=1.0).to(torch.bfloat16)
    odd = CharTokenizer(f"{VOCABULARY[:-1]}\u2028")
    checkpoint = checkpoint_of(model, GLM4, odd)
    export(checkpoint, "x.ckpt", tmp_path / "out", "safetensors")
    taken = take(tmp_path / "out").checkpoint
    assert taken["makemoe"]["tokenizer"] == odd.spec()
    held = taken["state_dict"]
    for name, one in checkpoint["state_dict"].items():
        assert held[name].dtype == one.dtype
        assert torch.equal(held[name], one)


@pytest.mark.parametrize("format", ["safetensors", "transformers"])
def test_a_vocabulary_that_no_text_has_is_refused(tmp_path: Path, format: str) -> None:
    odd = CharTokenizer(f"{VOCABULARY[:-1]}\ud801")
    checkpoint = checkpoint_of(model_of(MIXTRAL), MIXTRAL, odd)
    with pytest.raises(CheckpointError, match=r"lone surrogate U\+D801"):
        export(checkpoint, "x.ckpt", tmp_path / "other", format)


def test_a_setting_that_is_no_plain_value_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(model_of(MIXTRAL), MIXTRAL)
    checkpoint["hyper_parameters"]["init"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="a setting of its model is no plain value"):
        export(checkpoint, "x.ckpt", tmp_path / "out", "safetensors")
    assert not (tmp_path / "out").exists()


# -- whole or not at all


@pytest.fixture
def checkpoint() -> Checkpoint:
    return checkpoint_of(model_of(MIXTRAL), MIXTRAL)


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_exists_is_not_touched(checkpoint: Checkpoint, what: str, tmp_path: Path) -> None:
    to = tmp_path / "out"
    if what == "folder":
        to.mkdir()
    elif what == "file":
        to.write_text("mine")
    else:
        to.symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"--to .*out already exists: choose another folder"):
        export(checkpoint, "x.ckpt", to)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_appears_meanwhile_is_not_touched(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = contents.write_tensors

    def and_somebody_else(*arguments: Any) -> None:
        write(*arguments)
        (tmp_path / "out").mkdir()

    monkeypatch.setattr(contents, "write_tensors", and_somebody_else)
    with pytest.raises(WriteError, match=r"cannot write the folder .*out: File exists"):
        export(checkpoint, "x.ckpt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_export_left_is_removed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    left, other = tmp_path / ".m.12345678.partial", tmp_path / ".m2.12345678.partial"
    for folder in (left, other):
        folder.mkdir()
        os.utime(folder, (time.time() - 3600,) * 2)
    export(checkpoint, "x.ckpt", tmp_path / "m")
    assert (tmp_path / "m").is_dir()
    assert not left.exists()
    assert other.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_export_that_fails_leaves_nothing(
    checkpoint: Checkpoint,
    error: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(contents, "write_tensors", fails)
    with pytest.raises((WriteError, KeyboardInterrupt)):
        export(checkpoint, "x.ckpt", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_parent_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*none; create it first"):
        export(checkpoint, "x.ckpt", tmp_path / "none" / "out")


def test_settings_are_those_of_the_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export(checkpoint, "x.ckpt", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 50.0}
    told = {"rms_norm_eps": 0.01, "max_position_embeddings": 12, "dtype": "float32"}
    assert told.items() <= config.items()
    assert config["bos_token_id"] is config["eos_token_id"] is config["pad_token_id"] is None
