"""Checks that a state from a checkpoint has the structure of the state it replaces."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

MOST_COUNT = 1 << 62


class Unlike(Exception):
    """Where a state differs in structure from the one it replaces, and how."""

    def __init__(self, where: Sequence[str], how: str) -> None:
        super().__init__(f"{'.'.join(where)} {how}")


def check_alike(state: Any, own: Any, *where: str) -> None:
    """Refuse a state that differs from a new one in more than its values.

    Dictionaries must have the same keys, lists the same length, tensors the same shape and dtype;
    counts must not be negative. Where the new state has None, any plain value is accepted too.

    Args:
        state: the state in the checkpoint.
        own: the new state.
        where: names of the keys that lead to it, for messages.

    Raises:
        Unlike: at the first difference.
    """
    if isinstance(own, dict):
        _check_dict(state, own, where)
    elif isinstance(own, list | tuple):
        if not isinstance(state, list | tuple) or len(state) != len(own):
            raise Unlike(where, f"is not a list of {len(own)}")
        for number, (inner, own_inner) in enumerate(zip(state, own, strict=True)):
            check_alike(inner, own_inner, *where, str(number))
    elif isinstance(own, Tensor):
        same = isinstance(state, Tensor) and (state.shape, state.dtype) == (own.shape, own.dtype)
        if not same:
            raise Unlike(where, f"is not a tensor of shape {tuple(own.shape)}, {own.dtype}")
    elif not _is_alike(state, own):
        kind = "plain value" if own is None else type(own).__name__
        raise Unlike(where, f"is a {type(state).__name__} that is not a valid {kind}")


def _check_dict(state: Any, own: dict[Any, Any], where: Sequence[str]) -> None:
    if not isinstance(state, dict):
        raise Unlike(where, f"is a {type(state).__name__}, not a dictionary")
    for key in own.keys() ^ state.keys():
        raise Unlike((*where, str(key)[:40]), "is missing" if key in own else "is unknown")
    for key, own_inner in own.items():
        check_alike(state[key], own_inner, *where, str(key))


def _is_alike(state: Any, own: Any) -> bool:
    if own is None:
        return state is None or isinstance(state, bool | int | float | str)
    if isinstance(own, bool | str):
        return type(state) is type(own)
    if isinstance(own, int):
        return type(state) is int and min(own, 0) <= state <= MOST_COUNT
    return isinstance(own, float) and type(state) in (int, float)
