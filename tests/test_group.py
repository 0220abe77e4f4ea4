import copy

import pytest
import torch
from groups import Threads, share_of, together

from makemoe.errors import UsageError
from makemoe.group import ALONE, Group, Processes


def test_a_process_without_others_is_alone_and_nothing_happens_to_its_tensors() -> None:
    assert Group.joined() is ALONE
    assert (ALONE.rank, ALONE.size) == (0, 1)
    x = torch.randn(4, 3)
    before = x.clone()
    ALONE.sum_(x)
    ALONE.broadcast_(x)
    whole, own = ALONE.gather(x)
    assert whole is x
    assert torch.equal(x, before)
    assert torch.equal(whole[own], x)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 2, 3], [0, 4], [1, 0, 5]])
def test_parts_of_any_lengths_are_gathered_in_the_order_of_the_ranks(lengths: list[int]) -> None:
    whole = torch.randn(sum(lengths), 3)
    parts = whole.split(lengths)

    def work(group: Threads) -> None:
        gathered, own = group.gather(parts[group.rank])
        assert torch.equal(gathered, whole)
        assert torch.equal(gathered[own], parts[group.rank])

    together(len(lengths), work)


@pytest.mark.parametrize(("length", "size"), [(16, 1), (15, 2), (7, 3), (3, 3)])
def test_slices_make_up_the_whole_and_differ_by_one_at_most(length: int, size: int) -> None:
    x = torch.arange(length)
    parts = [share_of(Group(rank, size), x) for rank in range(size)]
    assert torch.equal(torch.cat(parts), x)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_group_of_processes_is_copied_with_the_model_that_holds_it() -> None:
    assert copy.deepcopy(Processes(1, 2)) == Processes(1, 2)


def test_processes_that_nothing_connects_are_refused() -> None:
    assert Group.joined(1) is ALONE
    with pytest.raises(UsageError, match=r"--trainer.strategy: its 2 processes .* use ddp"):
        Group.joined(2)
