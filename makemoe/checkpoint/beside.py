"""Writes checkpoints while training goes on, from a copy of the state."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from makemoe.machine import free_memory

T = TypeVar("T")

LARGEST_SHARE = 4
"""A copy may take one part in so many of the free memory; otherwise training waits."""


class Saving(Protocol):
    """What saves checkpoints and may do it while training goes on.

    Attributes:
        beside: whether the next save may.
    """

    beside: bool

    def attend(self, wait: bool = False) -> bool:
        """Raise what went wrong in writing, as soon as it is known.

        If processes save together, all must call at the same points.

        Args:
            wait: until everything is on the disk.

        Returns:
            whether it is.
        """


class Beside:
    """Does work in a thread, in the order it is given.

    Python waits for the thread before it ends.
    """

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None

    def begin(self, work: Callable[[], T]) -> "Future[T]":
        """Do work in the thread."""
        self.pool = self.pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        return self.pool.submit(work)


def done(work: Callable[[], T]) -> "Future[T]":
    """Do work at once; what it raises is kept as by a thread."""
    future: Future[T] = Future()
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
    return future


def has_room(nbytes: int) -> bool:
    """Whether a copy of the state fits beside it."""
    return nbytes * LARGEST_SHARE <= free_memory()


def size_of(value: Any) -> int:
    """Bytes of the tensors in nested values; of memory that several share, once."""
    found: dict[int, int] = {}

    def see(value: Any) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for inner in value:
                see(inner)
        elif isinstance(value, Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()

    see(value)
    return sum(found.values())


def snapshot(value: Any, copies: dict[tuple[str, int], torch.UntypedStorage] | None = None) -> Any:
    """A copy on the CPU of nested values, which no longer changes with them.

    Tensors in the same memory, such as tied weights, are so in the copy.

    Args:
        value: dictionaries, lists, tuples, plain values and tensors.
        copies: the memory copied so far, by device and address.
    """
    copies = {} if copies is None else copies
    if isinstance(value, dict):
        return {key: snapshot(inner, copies) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(snapshot(inner, copies) for inner in value)
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    storage = value.untyped_storage()
    if not storage.nbytes():  # all of them are at address 0
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype)
    key = str(value.device), storage.data_ptr()
    if key not in copies:
        numbers = torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage)
        copies[key] = numbers.to("cpu", copy=True).untyped_storage()
    own = torch.empty(0, dtype=value.dtype)
    return own.set_(copies[key], value.storage_offset(), value.size(), value.stride())
