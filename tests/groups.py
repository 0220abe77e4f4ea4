"""Processes that share a batch, as threads of this one."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from makemoe.group import Group, Processes

T = TypeVar("T")


@dataclass(frozen=True)
class Threads(Processes):
    """Its collectives are slots in a list, which all threads fill, and then all read."""

    slots: list[Tensor] = field(default_factory=list)
    barrier: Barrier = field(default_factory=lambda: Barrier(1))
    collectives: list[str] = field(default_factory=list)

    def exchange(self, kind: str, tensor: Tensor) -> list[Tensor]:
        self.collectives.append(kind)
        self.slots[self.rank] = tensor.detach().clone()
        self.barrier.wait(20)
        tensors = list(self.slots)
        self.barrier.wait(20)
        return tensors

    def sum_(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self.exchange("sum", tensor)).sum(0))

    def broadcast_(self, tensor: Tensor) -> None:
        tensor.copy_(self.exchange("broadcast", tensor)[0])

    def gather_alike(self, tensor: Tensor) -> list[Tensor]:
        tensors = self.exchange("gather", tensor)
        assert all(t.shape == tensor.shape for t in tensors)
        return tensors


def together(size: int, work: Callable[[Threads], T]) -> list[T]:
    """What `work` returns on each of `size` processes, by rank."""
    slots, barrier = [torch.empty(0)] * size, Barrier(size)

    def on(rank: int) -> T:
        try:
            return work(Threads(rank, size, slots, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(on, range(size)))


def share_of(group: Group, x: Tensor) -> Tensor:
    """This process's share of a whole."""
    return x[group.slice_of(len(x))]
