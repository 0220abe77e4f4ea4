import hashlib
import os
import random
import stat
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import VOCABULARY, Build, small

from makemoe import __version__
from makemoe.checkpoint.format import FORMAT, KEY, read, write
from makemoe.checkpoint.inference import load_for_inference
from makemoe.checkpoint.seal import SEAL_BYTES
from makemoe.data.tokenizer import CharTokenizer
from makemoe.errors import CheckpointError
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


def doubled(times: int) -> list[Any]:
    """2 to the power of `times` values, most of which are the same few lists."""
    inner: list[Any] = []
    for _ in range(times):
        inner = [inner, inner]
    return inner


def test_a_checkpoint_alone_rebuilds_model_and_tokenizer(tmp_path: Path, build: Build) -> None:
    content = small(build)
    write(content, tmp_path / "new/folder/a.ckpt")
    model, tokenizer = load_for_inference(tmp_path / "new/folder/a.ckpt")
    assert not model.training
    assert tokenizer.spec() == CharTokenizer(VOCABULARY).spec()
    assert isinstance(model.blocks[0].moe.router, NoisyTopKRouter)  # type: ignore[union-attr]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, content["state_dict"][f"net.{name}"])
    assert read(tmp_path / "new/folder/a.ckpt")[KEY]["format"] == FORMAT
    assert content[KEY]["version"] == __version__


def test_weights_that_are_missing_or_unknown_are_named(tmp_path: Path, build: Build) -> None:
    content = small(build)
    content["state_dict"]["net.stranger"] = content["state_dict"].pop("net.head.bias")
    write(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"1 weights are missing, for example head\.bias"):
        load_for_inference(tmp_path / "a.ckpt")
    content["state_dict"]["net.head.bias"] = torch.zeros(len(VOCABULARY))
    write(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="1 weights are unknown, for example stranger"):
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
    with pytest.raises(CheckpointError, match=r"a\.ckpt: No space left on device$"):
        write({"other": 1}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ckpt"]


@pytest.mark.parametrize("words", ["CUDA error: an illegal memory access", "can't allocate memory"])
def test_what_is_not_the_disk_s_fault_keeps_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match=words):
        write({"other": 1}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


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
        with pytest.raises(CheckpointError, match=r"truncated|not a checkpoint|bytes"):
            read(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({KEY: {"format": 99, "version": "9.9"}}, r"format 99, written by makemoe 9\.9"),
        ({KEY: {"format": torch.zeros(3)}}, "its format is a Tensor"),
        ({KEY: 3}, "not a makemoe checkpoint"),
        ({KEY: {"format": FORMAT}}, "has no tokenizer"),
        ({"state_dict": {}}, "36 weights are missing"),
        ({"state_dict": [1]}, "its state_dict is a list"),
        ({"state_dict": {"net.a": 1}}, "its weight 'net.a' is not a tensor"),
        ({"hyper_parameters": {}}, "does not contain the model"),
        ({"hyper_parameters": "all of them"}, "its hyper_parameters is a str"),
        ({"hyper_parameters": {"vocab_size": 11, "n_embd": "wide"}}, "model.n_embd is 'wide'"),
        ({"hyper_parameters": {"vocab_size": 11, "n_layer": True}}, "model.n_layer is True"),
        (
            {"hyper_parameters": {"vocab_size": 11, "top_k": 9}},
            "does not contain the model.*top_k 9",
        ),
        ({"more": {1.5: 0}}, "neither a string nor an integer"),
        ({"more": complex(1)}, "contains a complex"),
        ({"more": torch.zeros(1).expand(10**12)}, "not dense"),
        ({"more": torch.zeros(1, device="meta")}, "not dense"),
        ({"more": torch.eye(2).to_sparse()}, "run code"),
        ({"more": nested(100)}, "deeper"),
        ({"more": doubled(40)}, "more values"),
    ],
)
def test_a_checkpoint_that_does_not_hold_together(
    tmp_path: Path, build: Build, changes: dict[str, Any], words: str
) -> None:
    write(small(build, **changes), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=words):
        load_for_inference(tmp_path / "a.ckpt")


def forged(**attributes: object) -> OrderedDict[str, Any]:
    """A dictionary with a tensor that is not dense, and with attributes, which torch restores."""
    value = OrderedDict(hidden=torch.zeros(1).expand(10**12))
    vars(value).update(attributes)
    return value


def test_attributes_do_not_stand_for_methods(tmp_path: Path, build: Build) -> None:
    write(small(build, more=forged(values=OrderedDict)), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="not dense"):
        read(tmp_path / "a.ckpt")
    content = small(build)
    weights = OrderedDict(content["state_dict"])
    vars(weights)["_metadata"] = 5
    write(content | {"state_dict": weights}, tmp_path / "b.ckpt")
    assert vars(read(tmp_path / "b.ckpt")["state_dict"]) == {}
    whole = OrderedDict(content)
    vars(whole)["get"] = OrderedDict
    torch.save(whole, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match="not a makemoe checkpoint"):
        read(tmp_path / "c.ckpt")
    odd = torch.zeros(2)
    odd.is_floating_point = 1  # type: ignore[method-assign, assignment]
    write(small(build, more=odd), tmp_path / "d.ckpt")
    with pytest.raises(CheckpointError, match=r"run code|a tensor with attributes"):
        read(tmp_path / "d.ckpt")


TEXT = b"X" + struct.pack("<I", 1000) + b"x" * 1000
TWICE = {
    "a text": TEXT + b"q\0",
    "a list": b"](" + b"K\1" * 1000 + b"eq\0",
    "a dictionary": b"}(K\1K\2uq\0",
    "a shape": b"(" + b"K\1" * 65 + b"tq\0",
}
COPIES = {
    "an encoded text": ("a text", b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R"),
    "an array of bytes": ("a list", b"cbuiltins\nbytearray\nh\0\x85R"),
    "a set": ("a list", b"c__builtin__\nset\nh\0\x85R"),
    "a count": ("a text", b"ccollections\nCounter\nh\0\x85R"),
    "a size": ("a list", b"ctorch\nSize\nh\0\x85R"),
    "a storage": ("a list", b"ctorch\nFloatStorage\nh\0\x85R"),
    "a dictionary": ("a dictionary", b"ccollections\nOrderedDict\nh\0\x85R"),
    "a remembered function": ("a dictionary", b"ccollections\nOrderedDict\nq\1h\1h\0\x85R"),
    "a tensor": (
        "a list",
        b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n(h\0h\0h\0\x89tR",
    ),
    "attributes": ("a dictionary", b"ccollections\nOrderedDict\n)Rh\0b"),
    "a shape": ("a shape", b"h\0"),
    "a new object": ("a list", b"cbuiltins\nbytearray\nh\0\x85\x81"),
}


@pytest.mark.parametrize("what", COPIES)
def test_a_small_file_does_not_fill_the_memory_with_copies(tmp_path: Path, what: str) -> None:
    value, copy = COPIES[what]
    pickled = b"\x80\2" + TWICE[value] + b"](" + copy * 3 + b"e."
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        for name, data in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"a/{name}", data)
    with pytest.raises(CheckpointError, match="it would run code while loading"):
        read(tmp_path / "a.ckpt")


def test_a_vocabulary_with_a_character_that_no_text_has_is_refused(
    tmp_path: Path, build: Build
) -> None:
    content = small(build)
    content[KEY]["tokenizer"] = CharTokenizer(f"{VOCABULARY[:-1]}\ud800").spec()
    write(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"its tokenizer has the lone surrogate U\+D800"):
        load_for_inference(tmp_path / "a.ckpt")


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path: Path, build: Build) -> None:
    path, flipped = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    write(small(build), path)
    whole = path.read_bytes()
    draw = random.Random(1337)
    # The places where a change could go unseen: the seal itself, and the record before it.
    places = [len(whole) - n for n in range(1, SEAL_BYTES + 22 + 1)]
    places += [draw.randrange(len(whole)) for _ in range(300)]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << draw.randrange(8)
        flipped.write_bytes(content)
        with pytest.raises(CheckpointError):
            read(flipped)


def test_an_encrypted_record_is_refused(tmp_path: Path, build: Build) -> None:
    write(small(build), tmp_path / "a.ckpt")
    content = bytearray((tmp_path / "a.ckpt").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        place = archive.start_dir
    content[place + 8] |= 1
    (tmp_path / "b.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="it is not a checkpoint"):
        read(tmp_path / "b.ckpt")


@pytest.mark.parametrize("more", [b"\0", b"PK", b"x" * 1000])
def test_bytes_behind_the_end_are_refused(tmp_path: Path, build: Build, more: bytes) -> None:
    path = tmp_path / "a.ckpt"
    write(small(build), path)
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(CheckpointError):
        read(path)


def test_the_checksum_is_that_of_the_archive_which_other_programs_read(
    tmp_path: Path, build: Build
) -> None:
    path = tmp_path / "a.ckpt"
    write(small(build), path)
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment.decode()
    whole = path.read_bytes()[: -len(comment) - 2] + b"\0\0"
    assert comment == f"sha256:{hashlib.sha256(whole).hexdigest()}"
    assert torch.load(path, weights_only=True)[KEY]["format"] == FORMAT


def test_a_checkpoint_from_before_there_were_checksums_is_read(
    tmp_path: Path, build: Build
) -> None:
    content = small(build)
    content[KEY]["format"] = FORMAT
    torch.save(content, tmp_path / "new.ckpt")
    with pytest.raises(CheckpointError, match="its checksum is missing"):
        read(tmp_path / "new.ckpt")
    content[KEY]["format"] = 1
    torch.save(content, tmp_path / "old.ckpt")
    assert read(tmp_path / "old.ckpt")[KEY]["format"] == 1


def test_what_is_compressed_is_not_unpacked(tmp_path: Path, build: Build) -> None:
    write(small(build), tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as whole,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        read(tmp_path / "b.ckpt")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_that_are_no_real_numbers_are_refused(
    tmp_path: Path, build: Build, dtype: torch.dtype
) -> None:
    content = small(build)
    content["state_dict"]["net.head.weight"] = content["state_dict"]["net.head.weight"].to(dtype)
    write(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"its weight head\.weight has the type"):
        load_for_inference(tmp_path / "a.ckpt")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in (
        (tmp_path / "pipe", "Not a regular file"),
        (tmp_path / "loop", "symbolic links"),
        (Path("/dev/zero"), "Not a regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "\0", "null (byte|character)"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read(name)
