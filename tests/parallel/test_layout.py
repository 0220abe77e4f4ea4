"""How processes are arranged, and what each of them holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from makemoe.model.transformer import MoETransformer
from makemoe.parallel.layout import Layout
from makemoe.parallel.sharding import shard
from makemoe.shards import gathered, here, with_whole_matrices

Build = Callable[..., MoETransformer]


@contextmanager
def one_of(size: int, rank: int = 0) -> Iterator[None]:
    """One of so many processes; the others are not there, so what they send is not either."""
    torch.distributed.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shard", [True, False])
@pytest.mark.parametrize("experts", [1, 2, 4])
def test_a_layout_has_as_many_places_as_processes(shard: bool, experts: int) -> None:
    layout = Layout.of(8, 1, shard, experts)
    assert layout.replicate * layout.shard == 8
    assert layout.experts == experts


def test_copies_and_those_that_divide_the_experts_have_successive_numbers() -> None:
    """So with 4 processes on each machine, a copy and its tokens stay within one."""
    with one_of(8):
        dense, sparse = Layout.of(8, 2, True, 2).meshes("cpu")
        assert dense.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert sparse.mesh.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
        dense, sparse = Layout.of(8, 1, False, 4).meshes("cpu")
        assert dense.mesh.flatten(1).tolist() == [[n] for n in range(8)]
        assert sparse.mesh.flatten(1).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("rank", [0, 3])
def test_weights_are_cut_along_their_first_axis_so_matrices_of_experts_stay_whole(
    rank: int, build: Build
) -> None:
    net = build()
    whole = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    with one_of(4, rank):
        shard(net, Layout.of(4, 1, True, 1), "cpu")
        for name, weight in net.named_parameters():
            rows = -(-len(whole[name]) // 4)  # the last process has what is left
            assert torch.equal(here(weight), whole[name][rank * rows : (rank + 1) * rows]), name
        stacks = [w for name, w in net.named_parameters() if "experts.fc" in name and w.ndim == 3]
        assert stacks
        assert all(here(stack).shape[1:] == stack.shape[1:] for stack in stacks)


@pytest.mark.parametrize(("rank", "first"), [(0, 0), (1, 2), (2, 0), (3, 2)])
def test_without_shards_each_process_has_its_experts_and_all_other_weights(
    rank: int, first: int, build: Build
) -> None:
    net = build()
    whole = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    with one_of(4, rank):
        shard(net, Layout.of(4, 1, False, 2), "cpu")
        for name, weight in net.named_parameters():
            held = slice(first, first + 2) if "experts.fc" in name else slice(None)
            assert torch.equal(here(weight), whole[name][held]), name


def test_each_process_works_on_a_share_of_the_matrices_that_are_cut() -> None:
    shapes: list[list[tuple[int, ...]]] = []

    def work(matrices: list[Tensor]) -> list[Tensor]:
        shapes.append([tuple(matrix.shape) for matrix in matrices])
        return matrices

    with one_of(8, 1):
        mesh, _ = Layout.of(8, 2, True, 1).meshes("cpu")

        def parts_of(shape: tuple[int, ...]) -> list[Tensor]:
            """What is kept of 8 tensors whose rows four processes divide."""
            placements = [Replicate(), Shard(0)]
            wholes = [torch.randn(shape) for _ in range(8)]
            return [distribute_tensor(t, mesh, placements, src_data_rank=None) for t in wholes]

        for shape in ((8, 3), (4, 5, 3)):
            likes = parts_of(shape)
            parts = [here(like) for like in likes]
            back = with_whole_matrices(parts, likes, work)
            assert [part.shape for part in back] == [part.shape for part in parts]
    # The second is a stack, one matrix for each process: nothing has to be exchanged.
    assert shapes == [[(8, 3)] * 2, [(1, 5, 3)] * 8]


@pytest.mark.parametrize("rank", [0, 3])
def test_a_process_without_a_matrix_exchanges_the_same_type_as_the_others(rank: int) -> None:
    worked = []

    def work(matrices: list[Tensor]) -> list[Tensor]:
        worked.append(len(matrices))
        return [matrix.bfloat16() for matrix in matrices]

    with one_of(4, rank):
        mesh, _ = Layout.of(4, 1, True, 1).meshes("cpu")
        wholes, cut = [torch.randn(8, 3) for _ in range(3)], [Replicate(), Shard(0)]
        likes = [distribute_tensor(t, mesh, cut, src_data_rank=None) for t in wholes]
        back = with_whole_matrices([here(like) for like in likes], likes, work)
    assert worked == ([1] if rank == 0 else [])
    assert {part.dtype for part in back} == {torch.float32}


def test_only_who_keeps_a_checkpoint_has_it_in_memory(build: Build) -> None:
    with one_of(2, 1):
        net = build()
        shard(net, Layout.of(2, 1, True, 1), "cpu")
        state = {"state_dict": net.state_dict(keep_vars=True)}
        for keeps in (True, False):
            numbers = [t.numel() for t in gathered(state, keeps)["state_dict"].values()]
            expected = [w.numel() if keeps else 0 for w in build().parameters()]
            assert sum(numbers) == sum(expected)
