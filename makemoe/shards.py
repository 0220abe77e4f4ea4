"""Tensors of which each process holds a part: the DTensors of FSDP2 and expert parallelism.

All functions take ordinary tensors too, which every process holds whole.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.nn import Module

Work = Callable[[list[Tensor]], list[Tensor]]


def is_sharded(tensor: Any) -> TypeGuard[DTensor]:
    """Whether each process may hold only a part of a tensor."""
    return isinstance(tensor, DTensor)


def has_shards(module: Module) -> bool:
    """Whether a module's weights are in parts, so that all processes must compute together."""
    return any(map(is_sharded, module.parameters()))


def here(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, in the same memory; it may be empty."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        own: Tensor = tensor.to_local()
    return own


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its parts; all processes must call."""
    if not is_sharded(tensor):
        return tensor.detach()
    gathered: Any = tensor.detach()
    placements = list(tensor.placements)
    # Dimension by dimension, because torch warns of several at once. The order matters: experts
    # are cut by the last dimension of their mesh first.
    for dimension, placement in enumerate(placements):
        if placement != Replicate():
            placements[dimension] = Replicate()
            gathered = gathered.redistribute(placements=placements)
    full: Tensor = gathered.to_local()
    return full


def cut(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as `like` is; nothing is sent."""
    if not is_sharded(like) or is_sharded(full) or full.shape != like.shape:
        return full  # of another shape, it is refused where it is loaded
    chunk = like.__create_chunk_list__()[0]  # type: ignore[no-untyped-call]
    begins = zip(chunk.offsets, chunk.sizes, strict=True)
    own = full[tuple(slice(begin, begin + size) for begin, size in begins)]
    with torch.no_grad():
        part = torch.empty_like(like, dtype=full.dtype, requires_grad=False)
        here(part).copy_(own)
    return part


def cut_each(wholes: Mapping[str, Any], likes: Mapping[str, Tensor]) -> dict[str, Any]:
    """Each of some whole tensors cut as the one of that name, if there is one."""
    return {k: cut(full, likes[k]) if k in likes else full for k, full in wholes.items()}


def own_part(tensor: DTensor, number: int) -> tuple[list[int], Tensor] | None:
    """Where this process's part of a tensor begins, and the part, in the same memory.

    None if it is empty, or if it falls to another process that holds the same part: these take
    turns by `number`.
    """
    turn, takers = 0, 1
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    coordinates = tensor.device_mesh.get_coordinate() or ()
    for (placement, size), own in zip(sizes, coordinates, strict=True):
        if placement == Replicate():
            turn, takers = turn * size + own, takers * size
    own_tensor = here(tensor)
    if number % takers != turn or not own_tensor.numel():
        return None
    chunk = tensor.__create_chunk_list__()[0]  # type: ignore[no-untyped-call]
    return list(chunk.offsets), own_tensor.detach()


def gathered(value: Any, keeps: bool, known: dict[int, Tensor] | None = None) -> Any:
    """Nested values with each tensor in parts put together on the CPU, one tensor at a time.

    What is one tensor in several places is one afterwards. All processes must call, with values of
    the same structure.

    Args:
        value: dictionaries, lists and tuples, with anything in them.
        keeps: whether this process needs the result; the others forget each tensor at once.
        known: the tensors put together so far.
    """
    known = {} if known is None else known
    if isinstance(value, dict):
        return {key: gathered(inner, keeps, known) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(gathered(inner, keeps, known) for inner in value)
    if not is_sharded(value):
        return value.detach() if isinstance(value, Tensor) else value
    if id(value) not in known:
        full = whole(value)
        # A copy where the parts were padded, since a file holds all memory that a tensor is in.
        is_padded = full.untyped_storage().nbytes() > full.nbytes
        known[id(value)] = full.to("cpu", copy=is_padded) if keeps else full.new_empty(0)
    return known[id(value)]


def copies(tensor: Tensor, processes: int) -> int:
    """How many of so many processes hold the same part of a tensor."""
    if not is_sharded(tensor):
        return processes
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    number = 1
    for placement, size in sizes:
        number *= size if placement == Replicate() else 1
    return number


def total_norm(tensors: Iterable[Tensor], add: Callable[[Tensor], None], processes: int) -> Tensor:
    """The norm of all numbers in some tensors, whole or in parts, each counted once.

    Args:
        tensors: at least one.
        add: replaces a number by its sum over the processes.
        processes: how many there are.
    """
    by_copies: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        by_copies.setdefault(copies(tensor, processes), []).append(here(tensor))
    square = torch.stack(
        [torch.nn.utils.get_total_norm(own).square() / n for n, own in by_copies.items()]
    ).sum()
    add(square)
    return square.sqrt()


def are_matrices_cut(tensor: Tensor) -> bool:
    """Whether rows or columns of a matrix, or of a stack of matrices, are in several processes."""
    if not is_sharded(tensor):
        return False
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    return any(
        isinstance(placement, Shard) and placement.dim >= tensor.ndim - 2 and size > 1
        for placement, size in sizes
    )


def with_whole_matrices(
    parts: Sequence[Tensor], likes: Sequence[Tensor], work: Work
) -> list[Tensor]:
    """What `work` returns for tensors whose matrices are whole, and of it this process's parts.

    Matrices that are cut are exchanged, so that each process works on some of them, and back.

    Args:
        parts: this process's parts of tensors that are cut in the same way.
        likes: tensors that are cut as these are.
        work: returns, for each of some matrices or stacks, one of the same shape; in another type,
            perhaps, but a process that gets no matrix cannot know that.
    """
    like = likes[0]
    if not are_matrices_cut(like):
        return work(list(parts))
    assert is_sharded(like)
    shape = torch.Size((len(parts), *like.shape))
    cut_rows = [
        Shard(placement.dim + 1) if isinstance(placement, Shard) else placement
        for placement in like.placements
    ]
    apart: list[Placement] = [
        Shard(0) if isinstance(placement, Shard) else placement for placement in like.placements
    ]
    stack = as_dtensor(torch.stack(list(parts)), like, cut_rows, shape).redistribute(
        placements=apart
    )
    own: Tensor = stack.to_local()
    done = torch.stack(work(list(own.unbind()))) if len(own) else own
    # One type in all processes, which loses nothing of the type of the weights or of the work.
    done = done.to(torch.promote_types(own.dtype, torch.float32))
    back = as_dtensor(done, like, apart, shape).redistribute(placements=cut_rows)
    return list(back.to_local().unbind())


def any_of_parts(parts: Tensor, like: Tensor) -> Tensor:
    """Whether each of some conditions is met in any process's part of tensors cut as `like`."""
    if not is_sharded(like):
        return parts
    partial: list[Placement] = [
        Partial("max") if isinstance(placement, Shard) else placement
        for placement in like.placements
    ]
    found: Tensor = as_dtensor(parts.float(), like, partial, parts.shape).full_tensor() > 0
    return found


def as_dtensor(
    own: Tensor, like: DTensor, placements: Sequence[Placement], shape: torch.Size
) -> DTensor:
    """A tensor of this shape on the processes of `like`, from this process's part."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        own.contiguous(),
        like.device_mesh,
        placements,
        run_check=False,
        shape=shape,
        stride=stride,
    )
