"""Which tensors of a folder hold a weight of the model, and how they are arranged there.

A linear layer of transformers has the shape (out, in), and there is one for each expert. Here the
layers of all experts are stacked, (E, in, out).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Weight(NamedTuple):
    """A weight, and the tensors that hold it.

    Attributes:
        name: its name in the model.
        tensors: names and shapes of the tensors.
        take_apart: the tensors of a weight.
        put_together: the weight of the tensors.
    """

    name: str
    tensors: dict[str, Shape]
    take_apart: Callable[[Tensor], Sequence[Tensor]]
    put_together: Callable[[Sequence[Tensor]], Tensor]


def same(name: str, tensor: str, *shape: int) -> Weight:
    """One tensor, arranged as here."""
    return Weight(name, {tensor: shape}, lambda whole: [whole], lambda parts: parts[0])


def queries_keys_values(
    name: str, tensors: Sequence[str], n_embd: int, n_head: int, key_value_heads: int
) -> Weight:
    """Three tensors, one below the other here.

    Several heads of queries may share a head of keys and values (arXiv:2305.13245); here each has
    its own, so those that are shared are repeated.
    """
    shared = n_head // key_value_heads
    shapes = [(n_embd, n_embd), *[(n_embd // shared, n_embd)] * 2]

    def put_together(parts: Sequence[Tensor]) -> Tensor:
        q, *others = parts
        heads = [torch.unflatten(other, 0, (key_value_heads, -1)) for other in others]
        return torch.cat([q, *(h.repeat_interleave(shared, 0).flatten(0, 1) for h in heads)])

    return Weight(
        name,
        dict(zip(tensors, shapes, strict=True)),
        lambda whole: whole.chunk(3),
        put_together,
    )


def of_each_expert(name: str, tensors: Sequence[str], inputs: int, outputs: int) -> Weight:
    """A tensor (out, in) for each expert."""
    return Weight(
        name,
        dict.fromkeys(tensors, (outputs, inputs)),
        lambda whole: list(whole.transpose(1, 2)),
        lambda parts: torch.stack([part.T for part in parts]),
    )


def as_one_in(name: str, tensor: str, experts: int, n_embd: int, hidden: int) -> Weight:
    """First layers of several experts that read every token, in one tensor of their total width."""
    return Weight(
        name,
        {tensor: (experts * hidden, n_embd)},
        lambda whole: [whole.transpose(1, 2).flatten(0, 1)],
        lambda parts: torch.unflatten(parts[0], 0, (experts, hidden)).transpose(1, 2),
    )


def as_one_out(name: str, tensor: str, experts: int, n_embd: int, hidden: int) -> Weight:
    """Their last layers, whose outputs are added."""
    return Weight(
        name,
        {tensor: (n_embd, experts * hidden)},
        lambda whole: [whole.flatten(0, 1).T],
        lambda parts: torch.unflatten(parts[0].T, 0, (experts, hidden)),
    )
