import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from makemoe import __version__
from makemoe.checkpoint.format import FORMAT, KEY, read, stamp, write
from makemoe.checkpoint.inference import load_for_inference
from makemoe.checkpoint.parts import check_trusted, factory, names_in
from makemoe.data.tokenizer import CharTokenizer
from makemoe.errors import CheckpointError
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, Router
from makemoe.model.transformer import MoETransformer

VOCABULARY = "\n abcdefghi"
Build = Callable[..., MoETransformer]


def small(build: Build, router: type[Router] = NoisyTopKRouter, **changes: Any) -> dict[str, Any]:
    """What a checkpoint of a small model holds."""
    net = {"block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16, "num_experts": 4}
    model = build(**net | {"vocab_size": len(VOCABULARY), "router": router})
    path = f"makemoe.model.router.{router.__name__}"
    content: dict[str, Any] = {
        "state_dict": {f"net.{k}": v for k, v in model.state_dict().items()},
        "hyper_parameters": net
        | {"vocab_size": len(VOCABULARY), "router": path, "optimizer": "torch.optim.AdamW"},
    }
    stamp(content, CharTokenizer(VOCABULARY).spec())
    return content | changes


def test_a_checkpoint_alone_rebuilds_model_and_tokenizer(tmp_path: Path, build: Build) -> None:
    content = small(build)
    write(content, tmp_path / "new/folder/a.ckpt")
    model, tokenizer = load_for_inference(tmp_path / "new/folder/a.ckpt")
    assert not model.training
    assert tokenizer.spec() == CharTokenizer(VOCABULARY).spec()
    assert isinstance(model.blocks[0].moe.router, NoisyTopKRouter)  # type: ignore[union-attr]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, content["state_dict"][f"net.{name}"])
    assert content[KEY]["format"] == FORMAT
    assert content[KEY]["version"] == __version__


def test_weights_that_are_missing_or_unknown_are_named(tmp_path: Path, build: Build) -> None:
    content = small(build)
    content["state_dict"]["net.stranger"] = content["state_dict"].pop("net.head.bias")
    write(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"1 weights are missing, head\.bias the first"):
        load_for_inference(tmp_path / "a.ckpt")
    content["state_dict"]["net.head.bias"] = torch.zeros(len(VOCABULARY))
    write(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="1 weights are unknown, stranger the first"):
        load_for_inference(tmp_path / "a.ckpt")


def test_a_checkpoint_from_before_biases_were_calibrated_loads_uncalibrated(
    tmp_path: Path, build: Build
) -> None:
    content = small(build, BiasedTopKRouter)
    held = content["state_dict"]
    content["state_dict"] = {k: v for k, v in held.items() if not k.endswith("eval_shift_E")}
    assert len(content["state_dict"]) == len(held) - 2
    write(content, tmp_path / "a.ckpt")
    model, _ = load_for_inference(tmp_path / "a.ckpt")
    for name, weight in model.state_dict().items():
        expected = torch.zeros(4) if name.endswith("eval_shift_E") else held[f"net.{name}"]
        assert torch.equal(weight, expected)


def test_a_checkpoint_has_the_rights_of_any_new_file(tmp_path: Path, build: Build) -> None:
    write(small(build), tmp_path / "a.ckpt")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.ckpt", "other")}
    assert len(modes) == 1


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_one_whole(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = tmp_path / "a.ckpt"
    write(small(build), path)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fault, fail)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: No space left on device; .*--run\.root"):
        write({"other": 1}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_an_interrupted_write_leaves_the_old_one_whole(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    write(small(build), path)
    before = path.read_bytes()

    def interrupt(content: object, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write({"other": 1}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="Not a directory"):
        write({}, tmp_path / "file/runs/a.ckpt")


def test_every_truncation_is_refused(tmp_path: Path, build: Build) -> None:
    write(small(build), tmp_path / "a.ckpt")
    whole = (tmp_path / "a.ckpt").read_bytes()
    for length in (1, 2, 10, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b.ckpt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut short|not a checkpoint"):
            read(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({KEY: {"format": 99, "version": "9.9"}}, r"format 99, written by makemoe 9\.9"),
        ({KEY: 3}, "not a checkpoint of makemoe's"),
        ({KEY: {"format": FORMAT}}, "holds no tokenizer"),
        ({"state_dict": {}}, "does not hold the model"),
        ({"state_dict": [1]}, "does not hold the model"),
        ({"hyper_parameters": {}}, "does not hold the model"),
        ({"hyper_parameters": "all of them"}, "does not hold the model"),
        ({"hyper_parameters": {"vocab_size": 11, "n_embd": "wide"}}, "does not hold the model"),
        ({"hyper_parameters": {"vocab_size": 11, "top_k": 9}}, "does not hold the model.*top_k 9"),
    ],
)
def test_a_checkpoint_that_does_not_hold_together(
    tmp_path: Path, build: Build, changes: dict[str, Any], words: str
) -> None:
    write(small(build, **changes), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=words):
        load_for_inference(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("os.system", "--trust os"),
        ("makemoe_evil.Router", "--trust makemoe_evil"),
        ("makemoe.run.os.system", "asks for the class"),
        ("makemoe.checkpoint.parts.partial", "asks for the class"),
        ("makemoe.model.router.Gone", "which is not here"),
        ("makemoe.model.experts.MLPExperts", "which is no Router"),
        ("TopKRouter", "asks for the class TopKRouter"),
        ({"init_args": {}}, "names no class"),
        (7, "names no class"),
    ],
)
def test_only_trusted_classes_of_the_right_kind_are_built(spec: object, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        factory(spec, Router)


def test_trust_reaches_a_module_and_those_in_it_alone() -> None:
    check_trusted(["mine.routers.A", "makemoe.model.router.TopKRouter"], ["mine"])
    for name in ("minerals.A", "mine", "other.mine.A"):
        with pytest.raises(CheckpointError, match="--trust"):
            check_trusted([name], ["mine"])


def test_every_string_a_parser_could_import_is_found(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    hidden = {
        "class_path": "a.B",
        "init_args": [{"x": "{class_path: c.D}"}, '"e\\x2eF"', "[[g.h.I]]", str(file)],
        "plain": ["relu", "auto", 3, None, "a b. c", CharTokenizer(VOCABULARY).init_args()],
    }
    assert list(names_in(hidden)) == ["a.B", "c.D", "e.F", "g.h.I", str(file)]
