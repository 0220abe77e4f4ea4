"""Counts what a process gives to torch.distributed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed
from torch import Tensor

Counts = dict[str, float]


@contextmanager
def counting() -> Iterator[Counts]:
    """What this process must send at the least, while it lasts.

    `weights` are bytes of collectives that gather, divide or sum, `rows` those of all-to-all;
    `collectives` how many there were with several processes. What DDP sums in its own code is not
    seen.
    """
    sent: Counts = {"weights": 0, "rows": 0, "collectives": 0}

    def gather(output: Tensor, tensor: Tensor, group: Any = None) -> int:
        size = torch.distributed.get_world_size(group)
        sent["weights"] += tensor.nbytes * (size - 1)
        return size

    def gather_list(output: list[Tensor], tensor: Tensor, group: Any = None) -> int:
        return gather(tensor, tensor, group)

    def scatter(output: Tensor, tensor: Tensor, group: Any = None) -> int:
        return gather(tensor, output, group)

    def reduce(tensor: Tensor, group: Any = None) -> int:
        size = torch.distributed.get_world_size(group)
        sent["weights"] += 2 * tensor.nbytes * (size - 1) / size
        return size

    def trade(output: Tensor, tensor: Tensor, *splits: Any, group: Any = None) -> int:
        own, size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        rows = splits[1] if splits else [len(tensor) // size] * size
        sent["rows"] += tensor[: len(tensor) - rows[own]].nbytes
        return size

    def also(count: Callable[..., int], original: Callable[..., Any]) -> Callable[..., Any]:
        names = {"input": "tensor", "tensor": "tensor", "output": "output", "group": "group"}

        def call(*args: Any, **kwargs: Any) -> Any:
            known = {names[name]: value for name, value in kwargs.items() if name in names}
            sent["collectives"] += count(*args, **known) > 1
            return original(*args, **kwargs)

        return call

    counted: dict[str, Callable[..., int]] = {
        "all_gather_single": gather,
        "all_gather": gather_list,
        "reduce_scatter_single": scatter,
        "all_reduce": reduce,
        "all_to_all_single": trade,
    }
    with ExitStack() as patches:
        for name, count in counted.items():
            original = getattr(torch.distributed, name)
            patches.enter_context(patch.object(torch.distributed, name, also(count, original)))
        yield sent


def rows_leaving(routings: Any, held: int, own: int) -> int:
    """Assignments to experts that other processes hold; dropped ones do not travel.

    Args:
        routings: of this process's tokens.
        held: experts per process.
        own: which of the processes that divide the experts this is.
    """
    leaving = 0
    for routing in routings:
        elsewhere = routing.experts_NK // held != own
        if routing.dropped_NK is not None:
            elsewhere &= ~routing.dropped_NK
        leaving += int(elsewhere.sum())
    return leaving
