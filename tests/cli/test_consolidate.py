"""`makemoe consolidate`, and the other commands on checkpoints in pieces."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import cut_in_two, piece, small
from commandline import Ended, imports, listing, little_space, refused

from makemoe.api import load
from makemoe.checkpoint.format import write
from makemoe.cli import main
from makemoe.model.transformer import MoETransformer

Call = Callable[..., Ended]
Build = Callable[..., MoETransformer]
TO = "--to=one.ckpt"


@pytest.fixture
def saved(makemoe: Call, build: Build) -> Path:
    """`last.ckpt` in two pieces, and the same in one file, `whole.ckpt`."""
    content = small(build) | {"global_step": 7}
    content["state_dict"] = {name: w.clone() for name, w in content["state_dict"].items()}
    cut_in_two(content, Path("last.ckpt"))
    write(content, "whole.ckpt")
    return Path("last.ckpt")


def test_one_file_holds_what_the_pieces_held(makemoe: Call, saved: Path) -> None:
    Path(".one.ckpt.12345678.partial").write_text("what a killed command left")
    ended = makemoe("consolidate", f"--ckpt_path={saved}", TO)
    assert ended.status == 0
    assert ended.out == ""
    assert not list(Path().glob("*.partial"))
    using, wrote = ended.err.splitlines()
    assert using == "makemoe: using last.ckpt (step 7)"
    assert wrote.startswith("makemoe: wrote one.ckpt: one file, ")
    assert Path("one.ckpt").stat().st_size == Path("whole.ckpt").stat().st_size
    one, whole = (torch.load(f"{name}.ckpt", weights_only=True) for name in ("one", "whole"))
    assert one.keys() == whole.keys()
    assert one["makemoe"] == whole["makemoe"]
    for name, weight in whole["state_dict"].items():
        assert torch.equal(one["state_dict"][name], weight)
    assert sorted(os.listdir()) == ["last.ckpt", "last.ckpt.pieces", "one.ckpt", "whole.ckpt"]


def test_tensors_are_put_together_on_the_disk(
    makemoe: Call, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, allocate = list[int](), os.posix_fallocate

    def noted(file: int, begin: int, size: int) -> None:
        sizes.append(size)
        allocate(file, begin, size)

    monkeypatch.setattr(os, "posix_fallocate", noted)
    assert makemoe("consolidate", f"--ckpt_path={saved}", TO).status == 0
    weights = torch.load("whole.ckpt", weights_only=True)["state_dict"].values()
    # Each once, so that it takes no memory, and no more than the file's size again.
    assert sorted(sizes) == sorted(weight.nbytes for weight in weights)


def test_predict_and_export_take_both_kinds(makemoe: Call, saved: Path) -> None:
    texts = [
        makemoe("predict", f"--ckpt_path={path}", "--max_new_tokens=20")
        for path in ("last.ckpt", "whole.ckpt")
    ]
    assert texts[0].status == 0, texts[0].err
    assert texts[0].out == texts[1].out
    for path, to in (("last.ckpt", "a"), ("whole.ckpt", "b")):
        arguments = (f"--ckpt_path={path}", f"--to={to}", "--format=safetensors")
        assert makemoe("export", *arguments).status == 0
    weights = [Path(to, "model.safetensors").read_bytes() for to in "ab"]
    assert weights[0] == weights[1]
    models = [load(path) for path in ("last.ckpt", "whole.ckpt")]
    assert models[0].sample("a", max_new_tokens=20) == models[1].sample("a", max_new_tokens=20)


REFUSED: dict[tuple[str, ...], tuple[int, list[str]]] = {
    (): (2, ["--ckpt_path is missing"]),
    ("--ckpt_path=last.ckpt",): (2, ["--to is missing"]),
    ("--ckpt_path=whole.ckpt", TO): (2, ["whole.ckpt is one file already"]),
    ("--ckpt_path=last.ckpt", "--to=whole.ckpt"): (2, ["--to whole.ckpt already exists"]),
    ("--ckpt_path=last.ckpt", "--to=a/b.ckpt"): (2, ["there is no folder a"]),
    ("--ckpt_path=last.ckpt", "--to=a\0b"): (2, ["--to", "NUL"]),
    ("--ckpt_path=none.ckpt", TO): (1, ["no checkpoint none.ckpt"]),
    ("--ckpt_path=last.ckpt", TO, "--gather"): (2, ["--gather"]),
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_done_is_told_in_one_line(
    makemoe: Call, saved: Path, arguments: tuple[str, ...]
) -> None:
    refused(makemoe, *REFUSED[arguments], "consolidate", *arguments)


@pytest.mark.parametrize("command", ["consolidate", "predict", "inspect"])
def test_a_missing_piece_is_told_in_one_line(makemoe: Call, saved: Path, command: str) -> None:
    piece(saved, 1).unlink()
    to = [TO] if command == "consolidate" else []
    words = ["last.ckpt.pieces", "is missing", "together"]
    refused(makemoe, 1, words, command, f"--ckpt_path={saved}", *to)


def test_a_piece_is_told_to_be_one(makemoe: Call, saved: Path) -> None:
    path = f"--ckpt_path={piece(saved, 0)}"
    refused(makemoe, 1, ["is a piece of a checkpoint: pass last.ckpt"], "predict", path)


def test_a_full_disk_leaves_nothing_behind(saved: Path) -> None:
    before = listing(Path())
    if (child := os.fork()) == 0:
        little_space(1000)
        os._exit(main(["consolidate", f"--ckpt_path={saved}", TO]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert listing(Path()) == before


def test_consolidating_needs_no_lightning(saved: Path) -> None:
    status, packages = imports("consolidate", f"--ckpt_path={saved}", TO, cwd=Path())
    assert status == 0
    assert "lightning" not in packages
