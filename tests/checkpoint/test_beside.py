"""Checkpoints that are written while training goes on."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import small
from lightning.pytorch import Callback, Trainer
from trainers import run

from makemoe.checkpoint import beside, lightning_io
from makemoe.checkpoint.beside import has_room, size_of, snapshot
from makemoe.checkpoint.format import read, write
from makemoe.checkpoint.lightning_io import SafeCheckpointIO
from makemoe.errors import CheckpointError, WriteError

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning advises, and calls torch in old ways

PATIENCE_S = 60


class Held:
    """Takes the place of `format.write`, and writes only once it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.threads = threading.Event(), set[str]()
        self.begun: list[str] = []
        monkeypatch.setattr(lightning_io.files, "write", self)

    def __call__(self, checkpoint: dict[str, Any], path: Any) -> None:
        self.begun.append(Path(path).name)
        self.threads.add(threading.current_thread().name)
        assert self.go.wait(PATIENCE_S)
        write(checkpoint, path)


class At(Callback):
    """Does something at the end of a step, before checkpoints are saved."""

    def __init__(self, step: int, work: Any) -> None:
        self.step, self.work = step, work

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.work(trainer)


def when_there(path: Path) -> Path:
    """The path, once another thread has written the file."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return path


def test_training_goes_on_and_the_file_holds_the_step_it_was_saved_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"tied_embeddings": True}
    run(tmp_path / "to_4", max_steps=4, val_check_interval=100, parts=parts)
    held, before = Held(monkeypatch), {}

    def look(trainer: Trainer) -> None:
        before["begun"], before["is there"] = list(held.begun), last.exists()
        held.go.set()
        saved.update(read(when_there(last)))

    last = tmp_path / "to_7" / "last.ckpt"
    saved: dict[str, Any] = {}
    run(tmp_path / "to_7", At(7, look), max_steps=9, val_check_interval=100, parts=parts)
    assert before == {"begun": ["last.ckpt"], "is there": False}
    assert not any(name == threading.main_thread().name for name in held.threads)
    at_once = read(tmp_path / "to_4" / "last.ckpt")
    assert saved["global_step"] == at_once["global_step"] == 4
    for name, weight in at_once["state_dict"].items():
        assert torch.equal(weight, saved["state_dict"][name])
    states = [c["optimizer_states"][0]["state"] for c in (at_once, saved)]
    for number, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][number][name])


def test_when_a_fit_ends_everything_is_written(tmp_path: Path) -> None:
    run(tmp_path, max_steps=6, val_check_interval=3)
    assert read(tmp_path / "last.ckpt")["global_step"] == 6
    assert read(tmp_path / "best.ckpt")["global_step"] in (3, 6)


def test_a_write_that_fails_ends_the_run_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, max_steps=4, val_check_interval=100)
    steps: list[int] = []

    def fail(checkpoint: dict[str, Any], path: Any) -> None:
        raise WriteError(f"the checkpoint {path}", OSError(28, "No space left on device"))

    monkeypatch.setattr(lightning_io.files, "write", fail)
    seen = At(10, lambda trainer: steps.append(10))
    with pytest.raises(WriteError, match=r"last\.ckpt: No space left") as raised:
        run(
            tmp_path,
            seen,
            resume=tmp_path / "last.ckpt",
            max_steps=20,
            val_check_interval=100,
        )
    assert raised.value.is_full
    assert not steps  # it was saved at step 8, and ended at the next
    assert read(tmp_path / "last.ckpt")["global_step"] == 4


def test_the_next_save_of_a_file_waits_for_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int]] = []

    def slow(checkpoint: dict[str, Any], path: Any) -> None:
        order.append(("begin", checkpoint["global_step"]))
        threading.Event().wait(0.2)
        order.append(("end", checkpoint["global_step"]))

    monkeypatch.setattr(lightning_io.files, "write", slow)
    run(tmp_path, max_steps=12, val_check_interval=100)
    assert order == [(what, step) for step in (4, 8, 12) for what in ("begin", "end")]


@pytest.mark.parametrize("has_room", [True, False])
def test_a_checkpoint_that_names_another_is_not_written_if_that_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    written: list[str] = []
    begins = threading.Event()

    def write(checkpoint: dict[str, Any], path: str) -> None:
        begins.wait(10)
        if path.endswith("best.ckpt"):
            raise WriteError("the checkpoint best.ckpt", OSError(5, "Input/output error"))
        written.append(path)

    monkeypatch.setattr(lightning_io.files, "write", write)
    saves = SafeCheckpointIO()
    saves.beside = True
    saves.save_checkpoint({}, tmp_path / "best.ckpt")
    monkeypatch.setattr(lightning_io, "has_room", lambda _: has_room)
    begins.set()

    def save() -> None:
        saves.save_checkpoint({}, tmp_path / "last.ckpt")
        saves.attend(wait=True)

    with pytest.raises(WriteError, match="best"):
        save()
    saves.teardown()
    assert written == []


def test_without_room_for_a_copy_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "free_memory", lambda: 1000)
    assert has_room(250)
    assert not has_room(251)
    held = Held(monkeypatch)
    held.go.set()
    run(tmp_path, max_steps=4, val_check_interval=100)
    assert held.threads == {threading.main_thread().name}


def test_who_saves_by_hand_has_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "own.ckpt"
    steps: list[int] = []

    def save(trainer: Trainer) -> None:
        trainer.save_checkpoint(path)
        steps.append(read(path)["global_step"])

    run(tmp_path, At(2, save), max_steps=4, val_check_interval=100)
    assert steps == [2]


def test_a_copy_does_not_change_with_what_it_is_of() -> None:
    weight = torch.randn(4, 3)
    state = {"a": weight, "tied": weight.T, "n": [1, {"b": (2.0, None)}], "empty": torch.empty(0)}
    copy = snapshot(state)
    before = weight.clone()
    weight.zero_()
    state["n"][1]["b"] = 0  # type: ignore[index]
    assert torch.equal(copy["a"], before)
    assert torch.equal(copy["tied"], before.T)
    assert copy["a"].data_ptr() == copy["tied"].data_ptr()
    assert copy["n"] == [1, {"b": (2.0, None)}]
    assert size_of(copy) == before.nbytes


def test_a_copy_is_written_as_what_it_is_of(tmp_path: Path, build: Any) -> None:
    content = small(build)
    write(content, tmp_path / "a.ckpt")
    write(snapshot(content), tmp_path / "b.ckpt")
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


def test_empty_tensors_keep_their_types_and_shapes(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "makemoe": {"format": 1},
        "state_dict": {},
        "counts": torch.zeros((0, 3), dtype=torch.int64),
        "mass": torch.zeros((0, 3)),
        "sums": torch.zeros((3, 0)),
    }
    write(snapshot(content), tmp_path / "a.ckpt")
    held = read(tmp_path / "a.ckpt")
    for name in ("counts", "mass", "sums"):
        assert (held[name].dtype, held[name].shape) == (content[name].dtype, content[name].shape)


def test_a_process_that_ends_waits_for_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        read(tmp_path / "last.ckpt")

    def stop(trainer: Trainer) -> None:
        raise CheckpointError("stopped by hand")

    with pytest.raises(CheckpointError, match="stopped by hand"):
        run(tmp_path, At(4, stop), max_steps=20, val_check_interval=100)
    assert read(tmp_path / "last.ckpt")["global_step"] == 4
