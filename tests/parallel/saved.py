"""What each of several processes checks of saving in pieces, without a trainer."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from makemoe.checkpoint import pieces
from makemoe.checkpoint.format import read, stamp
from makemoe.errors import CheckpointError, MakeMoEError, WriteError
from makemoe.parallel import saving as parallel_saving
from makemoe.parallel.saving import PiecesIO

WAIT_S = 60


def check() -> None:
    """All of it, on two processes or four."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    size = torch.distributed.get_world_size()
    for shape in ((size, 1), (1, size), (2, size // 2)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
        path = Path(f"saved-{shape[0]}-{size}") / "last.ckpt"
        wholes, state = divided(mesh, float(shape[0]))
        saving = PiecesIO()
        saving.save(state, path, f"{1:016x}")
        holds(path, wholes, shape[1] * min(shape[0], len(wholes)))
        copies_into_the_same_memory(saving, path, state)
        goes_on_beside(saving, path, state)
        asks_at_every_tenth_step(saving, path, state)
        fails_in_one_process(saving, path, state)
        is_not_seen_by_all(saving, path, state)
        is_checked_before(saving, path.parent)


def divided(mesh: Any, value: float) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors of all kinds of sizes, and a checkpoint with each process's part of them."""
    torch.manual_seed(1)
    sizes = {"rows": (5, 3), "few rows": (1, 4), "one": (7,), "empty": (0, 3)}
    wholes = {name: torch.randn(shape) * value for name, shape in sizes.items()}
    parts: dict[str, Any] = {
        name: distribute_tensor(whole, mesh, [Replicate(), Shard(0)], src_data_rank=None)
        for name, whole in wholes.items()
    }
    wholes["again"], parts["again"] = wholes["rows"], parts["rows"]
    wholes["plain"] = parts["plain"] = torch.arange(3.0)
    state: dict[str, Any] = {"state_dict": parts, "lists": [{"a": [parts["one"], 1]}]}
    stamp(state, None)
    return wholes, state


def holds(path: Path, wholes: dict[str, torch.Tensor], most: int) -> None:
    """The checkpoint has these tensors, in no more than so many pieces."""
    torch.distributed.barrier()
    found = read(path)
    assert found["state_dict"].keys() == wholes.keys()
    for name, whole in wholes.items():
        assert torch.equal(found["state_dict"][name], whole), name
    assert torch.equal(found["lists"][0]["a"][0], wholes["one"])
    assert found["lists"][0]["a"][1] == 1
    assert 1 <= len(os.listdir(pieces.folder_of(path))) <= most
    torch.distributed.barrier()


def goes_on_beside(saving: PiecesIO, path: Path, state: dict[str, Any]) -> None:
    """A save holds what was there when it began, and counts only when all have written."""
    rank, last = torch.distributed.get_rank(), torch.distributed.get_world_size() - 1
    before = {name: whole_of(tensor) for name, tensor in state["state_dict"].items()}
    go, write = threading.Event(), pieces.write_piece

    def late(*args: Any) -> str:
        assert rank != last or go.wait(WAIT_S)
        return write(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "write_piece", late)
        saving.beside = True
        saving.save(state, path, f"{2:016x}")
        saving.beside = False
        for tensor in state["state_dict"].values():
            tensor.mul_(2)  # "again" is "rows"
        state["lists"][0]["a"][1] = 2
        writes = saving.pending[path][0].parts if rank == last else {}
        told: list[Any] = [None] * (last + 1)
        torch.distributed.all_gather_object(told, bool(writes))
        if told[last]:
            assert not saving.attend()
            assert not saving.attend()
        go.set()
        assert saving.attend(wait=True)
    holds(path, before, last + 1)
    assert saving.attend()


def asks_at_every_tenth_step(saving: PiecesIO, path: Path, state: dict[str, Any]) -> None:
    """While a save is not a checkpoint yet, most steps wait for no other process."""
    total, asked = parallel_saving.total, list[int]()

    def counted(here: int) -> int:
        asked.append(here)
        return total(here)

    saving.attend(wait=True)
    go, write = threading.Event(), pieces.write_piece

    def late(*args: Any) -> str:
        assert go.wait(WAIT_S)
        return write(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "write_piece", late)
        patch.setattr(parallel_saving, "total", counted)
        saving.beside = True
        saving.save(state, path, f"{7:016x}")
        saving.beside = False
        assert not any(saving.attend() for _ in range(30))
        go.set()
        assert len(asked) == 3
        saving.attend(wait=True)


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def copies_into_the_same_memory(saving: PiecesIO, path: Path, state: dict[str, Any]) -> None:
    """The next save needs no new memory, and holds what there is then."""
    places = []
    for number in (5, 6):
        for tensor in state["state_dict"].values():
            tensor.mul_(2)
        wholes = {name: whole_of(tensor) for name, tensor in state["state_dict"].items()}
        saving.beside = True
        saving.save(state, path, f"{number:016x}")
        saving.beside = False
        parts = saving.pending[path].save.parts
        places.append({number: part.tensor.data_ptr() for number, part in parts.items()})
        while not saving.attend():
            pass
        holds(path, wholes, torch.distributed.get_world_size())
    assert places[0] == places[1]


def fails_in_one_process(saving: PiecesIO, path: Path, state: dict[str, Any]) -> None:
    """All processes raise what went wrong in one; the old checkpoint stays, alone."""
    rank, last = torch.distributed.get_rank(), torch.distributed.get_world_size() - 1
    torch.distributed.barrier()
    before = files(path)
    full = WriteError("the checkpoint x", OSError(28, "No space left on device"))

    def fail(*args: Any) -> Any:
        raise full

    for failing, beside in ((0, False), (last, False), (last, True)):
        for where, name in ((pieces, "write_piece"), (pieces, "check_written")):
            if name == "check_written" and failing:
                continue  # only the first process commits
            with pytest.MonkeyPatch.context() as patch:
                if rank == failing:
                    patch.setattr(where, name, fail)
                saving.beside = beside
                error = raised(saving, path, state)
                saving.beside = False
            told: list[Any] = [None] * (last + 1)
            torch.distributed.all_gather_object(told, error)
            errors = {str(one) for one in told}
            assert len(errors) == 1, errors
            if error is not None:  # a process that holds no part writes nothing
                assert isinstance(error, WriteError)
                assert error.is_full
                assert files(path) == before
            before = files(path)
            torch.distributed.barrier()


def raised(saving: PiecesIO, path: Path, state: dict[str, Any]) -> MakeMoEError | None:
    try:
        saving.save(state, path, f"{3:016x}")
        saving.attend(wait=True)
    except MakeMoEError as error:
        torch.distributed.barrier()
        return error
    torch.distributed.barrier()
    return None


def files(path: Path) -> dict[str, bytes]:
    torch.distributed.barrier()
    found = {one.name: one.read_bytes() for one in path.parent.rglob("*") if one.is_file()}
    torch.distributed.barrier()
    return found


def is_not_seen_by_all(saving: PiecesIO, path: Path, state: dict[str, Any]) -> None:
    """Machines that see different folders are told so, in all processes."""
    rank = torch.distributed.get_rank()
    before = files(path)
    own = path.parent.with_name(f"{path.parent.name}-of-{rank}") / "last.ckpt"
    told: list[Any] = [None] * torch.distributed.get_world_size()
    error = raised(saving, path if rank == 0 else own, state)
    torch.distributed.all_gather_object(told, str(error))
    assert len(set(told)) == 1
    if error is not None:
        assert isinstance(error, CheckpointError)
        assert "let all machines see the same folder" in str(error)
        assert files(path) == before


def is_checked_before(saving: PiecesIO, folder: Path) -> None:
    """A folder that only some processes see is refused before the first save."""
    rank = torch.distributed.get_rank()
    saving.check_seen(folder)
    before = files(folder / "x")
    errors: list[Any] = [None] * torch.distributed.get_world_size()
    for own, words in ((f"{folder}-of-{rank}", "not all machines"), ("/proc/none", "cannot write")):
        with pytest.raises(CheckpointError, match=words) as raised:
            saving.check_seen(Path(own))
        torch.distributed.all_gather_object(errors, words in str(raised.value))
        assert all(errors)
    saving.check_seen(folder)
    assert files(folder / "x") == before
