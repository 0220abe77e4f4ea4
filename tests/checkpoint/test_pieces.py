"""Checkpoints in pieces, as several processes write them: read, damaged, forged, put together."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from checkpoint_files import LATER, SAVE, Build, cut_in_two, piece, small

from makemoe.checkpoint import archive, pieces
from makemoe.checkpoint.format import IN_PIECES, KEY, read, write, write_index
from makemoe.checkpoint.in_pieces import InPieces, Part
from makemoe.checkpoint.inference import load_for_inference
from makemoe.errors import CheckpointError, WriteError
from makemoe.training.module import LanguageModel


@pytest.fixture
def content(build: Build) -> dict[str, Any]:
    content = small(build)
    state = content["state_dict"]
    content["moments"] = {name: torch.randn(weight.shape) for name, weight in state.items()}
    return content


@pytest.fixture
def saved(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "last.ckpt"
    cut_in_two(content, path)
    return path


def test_a_checkpoint_in_pieces_holds_what_one_file_holds(
    saved: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    write(content, tmp_path / "one.ckpt")
    one, several = read(tmp_path / "one.ckpt"), read(saved)
    assert several[KEY]["format"] == IN_PIECES
    assert saved.stat().st_size < (tmp_path / "one.ckpt").stat().st_size / 10
    for key in ("state_dict", "moments"):
        assert one[key].keys() == several[key].keys()
        for name, tensor in one[key].items():
            assert isinstance(several[key][name], InPieces)
            assert torch.equal(tensor, several[key][name])
    models = [load_for_inference(path)[0] for path in (tmp_path / "one.ckpt", saved)]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_moved_checkpoint_is_read_where_it_is(saved: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for one in (saved, pieces.folder_of(saved)):
        shutil.move(one, moved / one.name)
    assert torch.equal(*[read(moved / "last.ckpt")["moments"]["net.head.bias"]] * 2)


def test_slices_of_a_tensor_in_pieces_are_those_of_the_whole() -> None:
    whole = torch.arange(7 * 5 * 3).view(7, 5, 3)
    begins = [(0, 0, 0), (0, 2, 0), (4, 0, 0), (4, 2, 0)]
    ends = [(4, 2, 3), (4, 5, 3), (7, 2, 3), (7, 5, 3)]
    parts = [
        Part(begin, whole[tuple(map(slice, begin, end))])
        for begin, end in zip(begins, ends, strict=True)
    ]
    in_pieces = InPieces(whole.shape, whole.dtype, parts)
    for index in (
        (slice(0, 4), slice(0, 2), slice(0, 3)),
        (slice(1, 6), slice(1, 4), slice(2, 3)),
        (slice(0, 0), slice(0, 5), slice(0, 3)),
        (slice(None), slice(3, None), slice(-2, None)),
        2,
        (slice(0, 7, 2), 1),
    ):
        assert torch.equal(in_pieces[index], whole[index]), index
    assert (in_pieces.shape, in_pieces.dtype, len(in_pieces)) == (whole.shape, whole.dtype, 7)
    assert type(in_pieces.to("cpu")) is torch.Tensor
    assert torch.equal(torch.zeros_like(whole).copy_(in_pieces), whole)
    with pytest.raises(AssertionError, match="mul_ would change a file"):
        in_pieces.mul_(2)


def test_the_next_save_removes_the_former_pieces(saved: Path, content: dict[str, Any]) -> None:
    folder = pieces.folder_of(saved)
    (folder / f".{pieces.name_of('0' * 16, 3)}.abc.partial").touch()  # of a killed process
    (folder / pieces.name_of("1" * 16, 3)).touch()
    (folder / "notes.txt").touch()
    old = read(saved)
    cut_in_two(content, saved, LATER)
    new = {pieces.name_of(LATER, rank) for rank in range(2)}
    assert set(os.listdir(folder)) == new | {"notes.txt"}
    assert torch.equal(old["moments"]["net.head.bias"], content["moments"]["net.head.bias"])
    (folder / "notes.txt").unlink()
    write(content, saved)
    assert not folder.exists()


def test_a_reader_that_a_save_overtakes_reads_the_new_checkpoint(
    saved: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, content["moments"] = pieces.fill, {"later": torch.ones(2)}

    def overtaken(*args: Any) -> None:
        monkeypatch.setattr(pieces, "fill", fill)
        cut_in_two(content, saved, LATER)
        fill(*args)

    monkeypatch.setattr(pieces, "fill", overtaken)
    assert torch.equal(read(saved)["moments"]["later"], torch.ones(2))


def test_a_write_that_fails_leaves_the_old_one_whole(
    saved: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content["moments"]["net.head.bias"]
    replace, times = os.replace, []

    def fail_third(*args: Any) -> None:
        times.append(args)
        if len(times) == 3:  # two pieces, then the file
            raise OSError(28, "No space left on device")
        replace(*args)

    monkeypatch.setattr(os, "replace", fail_third)
    with pytest.raises(WriteError, match=r"last\.ckpt: No space left on device"):
        cut_in_two(content | {"moments": {}}, saved, LATER)
    assert torch.equal(read(saved)["moments"]["net.head.bias"], before)


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    path, random = tmp_path / "last.ckpt", Random(3)

    def at(step: int) -> dict[str, Any]:
        weights = {str(n): torch.full((300, 40), float(step)) for n in range(5)}
        return {KEY: {}, "state_dict": weights, "global_step": step}

    cut_in_two(at(0), path, f"{0:016x}")
    steps: set[int] = set()
    for first in range(0, 75_000, 5000):
        before = pieces.version_of(path)
        if (child := os.fork()) == 0:
            for step in range(first + 1, first + 5000):
                cut_in_two(at(step), path, f"{step:016x}")
            os._exit(1)
        while pieces.version_of(path) == before:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        found = read(path)
        steps.add(found["global_step"])
        for weight in found["state_dict"].values():
            assert torch.equal(weight, torch.full((300, 40), float(found["global_step"])))
    assert len(steps) == 15
    cut_in_two(at(7), path)  # what the killed ones left behind is removed
    assert len(os.listdir(pieces.folder_of(path))) == 2


def test_a_folder_that_the_first_process_does_not_see_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"2 of 2 pieces are not in .*same folder"):
        write_index({KEY: {}}, [], {"a": "", "b": ""}, tmp_path / "last.ckpt")


def missing(path: Path) -> None:
    piece(path, 1).unlink()


def foreign(path: Path) -> None:
    other = path.parent / "other.ckpt"
    content = {KEY: {}, "state_dict": {"a": torch.ones(3)}}
    cut_in_two(content, other)
    shutil.copy(piece(other, 1), piece(path, 1))


def truncated(path: Path) -> None:
    whole = piece(path, 0).read_bytes()
    piece(path, 0).write_bytes(whole[: len(whole) // 2])


def flipped(path: Path) -> None:
    whole = bytearray(piece(path, 0).read_bytes())
    whole[len(whole) // 2] ^= 1
    piece(path, 0).write_bytes(whole)


def a_folder(path: Path) -> None:
    missing(path)
    piece(path, 1).mkdir()


def run_code(path: Path) -> None:
    reseal(path, 1, os.system)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, r"last\.ckpt: its piece .*-1\.ckpt is missing"),
        (foreign, r"-1\.ckpt is one of another checkpoint"),
        (truncated, r"-0\.ckpt: it is truncated"),
        (flipped, r"-0\.ckpt: it has changed"),
        (a_folder, r"-1\.ckpt is a folder"),
        (run_code, r"-1\.ckpt: it would run code"),
    ],
)
def test_a_spoiled_piece_is_named(saved: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(saved)
    with pytest.raises(CheckpointError, match=words):
        read(saved)


def reseal(path: Path, rank: int, content: Any) -> None:
    """Replace a piece, and its checksum in the checkpoint, as a forger does."""
    seal = archive.save(content, piece(path, rank))
    held = torch.load(path, weights_only=True)
    held[KEY][pieces.KEY][pieces.FILES][pieces.name_of(SAVE, rank)] = seal
    archive.save(held, path)


def with_parts(path: Path, rank: int, change: Callable[[list[Any]], Any]) -> None:
    """Forge the parts of a piece: the first is of `net.head.bias`, if that is the first."""
    held = torch.load(piece(path, rank), weights_only=True)
    parts = held[pieces.PARTS]
    held[pieces.PARTS] = change(parts) or parts
    reseal(path, rank, held)


FORGED_PARTS: dict[str, Callable[[list[Any]], Any]] = {
    "a hole": lambda parts: parts[1:],
    "an overlap": lambda parts: [[n, [0] * len(b), t] for n, b, t in parts],
    "outside": lambda parts: [[n, [b[0] + 1, *b[1:]], t] for n, b, t in parts],
    "far outside": lambda parts: [[n, [1 << 62, *b[1:]], t] for n, b, t in parts],
    "negative": lambda parts: [[n, [-1, *b[1:]], t] for n, b, t in parts],
    "another size": lambda parts: [[n, b, t[..., :0]] for n, b, t in parts],
    "another dtype": lambda parts: [[n, b, t.double()] for n, b, t in parts],
    "more dimensions": lambda parts: [[n, [*b, 0], t[..., None]] for n, b, t in parts],
    "an unknown number": lambda parts: [[n + 1000, b, t] for n, b, t in parts],
    "twice": lambda parts: parts * 2,
    "no list": lambda parts: {"a": 1},
    "a number": lambda parts: 5,
    "a tensor": lambda parts: torch.ones(1),
    "no tensor": lambda parts: [[n, b, 1] for n, b, t in parts],
    "no number": lambda parts: [[True, b, t] for n, b, t in parts],
    "sparse": lambda parts: [[n, b, t.to_sparse()] for n, b, t in parts],
    "expanded": lambda parts: [[n, b, torch.zeros(1).expand(t.shape)] for n, b, t in parts],
}


@pytest.mark.parametrize("forged", FORGED_PARTS)
def test_forged_parts_are_refused(saved: Path, forged: str) -> None:
    with_parts(saved, 1, FORGED_PARTS[forged])
    with pytest.raises(CheckpointError, match=r"is damaged or forged|run code"):
        read(saved)


def test_an_empty_part_beside_the_whole_adds_nothing(saved: Path, content: dict[str, Any]) -> None:
    held = [torch.load(piece(saved, rank), weights_only=True) for rank in range(2)]
    number, begins, tensor = held[1][pieces.PARTS][0]
    whole = next(part for part in held[0][pieces.PARTS] if part[0] == number)
    axis = next(axis for axis, begin in enumerate(begins) if begin)
    whole[2] = torch.cat([whole[2], tensor], axis)
    held[1][pieces.PARTS][0] = [number, [0] * tensor.ndim, tensor.narrow(axis, 0, 0)]
    for rank in range(2):
        reseal(saved, rank, held[rank])
    several = read(saved)
    for key in ("state_dict", "moments"):
        for name, one in content[key].items():
            assert torch.equal(one, several[key][name])


def with_table(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda held: change(held[KEY][pieces.KEY])


def first(change: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    return with_table(lambda table: table[pieces.TENSORS][0].update(change))


def named(name: str) -> Callable[[dict[str, Any]], Any]:
    return with_table(lambda table: table[pieces.FILES].update({name: "0" * 64}))


FORGED_TABLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no table": lambda held: held[KEY].pop(pieces.KEY),
    "a list": lambda held: held[KEY].update({pieces.KEY: []}),
    "no tensors": with_table(lambda table: table.pop(pieces.TENSORS)),
    "another folder": named("../../etc/passwd"),
    "an absolute path": named("/etc/passwd"),
    "a path in a name": named(f"{SAVE}-0.ckpt/../x"),
    "a newline in a name": named(f"{SAVE}-0.ckpt\n"),
    "a huge shape": first({"shape": [1 << 60, 1 << 60]}),
    "more dimensions than torch has": first({"shape": [1 << 62] * 100_000}),
    "a negative shape": first({"shape": [-1]}),
    "an unknown dtype": first({"dtype": "quint8"}),
    "another dtype": first({"dtype": "int64"}),
    "no places": first({"places": "state_dict"}),
    "no place": first({"places": [[]]}),
    "a place that is taken": first({"places": [[KEY, "version"]]}),
    "a place that is not there": first({"places": [["state_dict", "net.new"]]}),
    "a place in a number": first({"places": [[KEY, "format", "a"]]}),
    "a place in a place": first({"places": [[["a"]]]}),
    "a place in a tensor": lambda held: (
        held.update(small=torch.zeros(3)) or first({"places": [["small", 10**30, 1]]})(held)
    ),
    "a place in a tensor by words": lambda held: (
        held.update(small=torch.zeros(3)) or first({"places": [["small", [None] * 70, 1]]})(held)
    ),
    "strides beyond any address": first({"shape": [0, 1 << 62, 1 << 62]}),
    "too many": with_table(
        lambda table: table[pieces.FILES].update(
            {pieces.name_of(SAVE, rank): "" for rank in range(5000)}
        )
    ),
}


@pytest.mark.parametrize("forged", FORGED_TABLES)
def test_a_forged_table_is_refused(saved: Path, forged: str) -> None:
    held = torch.load(saved, weights_only=True)
    FORGED_TABLES[forged](held)
    archive.save(held, saved)
    with pytest.raises(CheckpointError, match="is damaged or forged"):
        read(saved)


def test_a_piece_is_no_checkpoint(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"is a piece of a checkpoint: pass {saved}$"):
        read(piece(saved, 0))


def test_weights_in_pieces_that_are_not_finite_are_refused(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    content["state_dict"]["net.head.bias"][-1] = torch.nan
    cut_in_two(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"net\.head\.bias is not finite"):
        read(tmp_path / "a.ckpt")


def test_another_reader_is_told_to_use_makemoes(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    model = LanguageModel(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4, num_experts=2)
    with pytest.raises(CheckpointError, match=r"use `makemoe\.load`"):
        model.on_load_checkpoint(content)
    model.on_load_checkpoint({"makemoe": {}})
