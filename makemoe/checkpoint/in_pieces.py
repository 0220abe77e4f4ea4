"""Tensors whose parts are in several files, put together where they are used."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Part(NamedTuple):
    """A part of a tensor, with the index of its first number in the whole."""

    begins: tuple[int, ...]
    tensor: Tensor


class InPieces(Tensor):
    """A tensor that stays in its files until it is used.

    Whatever is done with it is done with the whole, put together for this one use. Only its slices
    read no more than they need. Sizes and dtype are known without reading anything.

    Args:
        shape: the shape of the whole.
        dtype: the dtype of the whole and of its parts.
        parts: cover the whole without overlap; each is mapped from a file.
    """

    parts: Sequence[Part]

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, parts: Sequence[Part]) -> "InPieces":
        self: InPieces = Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=dtype)
        self.parts = parts
        return self

    def put_together(self, out: Tensor | None = None) -> Tensor:
        """The whole tensor, in `out` if it is given."""
        own = torch.empty(self.shape, dtype=self.dtype) if out is None else out
        for begins, part in self.parts:
            ranges = zip(begins, part.shape, strict=True)
            own[tuple(slice(begin, begin + size) for begin, size in ranges)] = part
        return own

    def sliced(self, slices: Sequence[slice]) -> Tensor:
        """The numbers in these ranges, one per dimension; of one part, they stay in its file."""
        ranges = [range(size)[one] for one, size in zip(slices, self.shape, strict=True)]
        shape = [len(one) for one in ranges]
        found = []
        for begins, part in self.parts:
            common = [
                (max(own.start, begin), min(own.stop, begin + size))
                for own, begin, size in zip(ranges, begins, part.shape, strict=True)
            ]
            if all(begin < end for begin, end in common):
                cut = [
                    slice(begin - start, end - start)
                    for (begin, end), start in zip(common, begins, strict=True)
                ]
                place = [
                    slice(begin - own.start, end - own.start)
                    for (begin, end), own in zip(common, ranges, strict=True)
                ]
                found.append((tuple(place), part[tuple(cut)]))
        if len(found) == 1 and list(found[0][1].shape) == shape:
            return found[0][1]
        own = torch.empty(shape, dtype=self.dtype)
        for where, part in found:
            own[where] = part
        return own

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in DESCRIBING:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if func == Tensor.detach:
            return args[0]
        if func == Tensor.__getitem__ and are_ranges(args[1]) and len(args[1]) == args[0].ndim:
            return args[0].sliced(args[1])
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        assert not (in_place and isinstance(args[0], InPieces)), f"{name} would change a file"
        args, kwargs = tree_map(whole_of, (tuple(args), dict(kwargs)))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{args[0]} does not know tensors in pieces")


def are_ranges(index: Any) -> bool:
    """Whether an index is one range per dimension, without steps."""
    return isinstance(index, tuple) and all(
        isinstance(one, slice) and one.step is None for one in index
    )


def whole_of(value: Any) -> Any:
    """The value; a tensor in pieces is put together."""
    return value.put_together() if isinstance(value, InPieces) else value


DESCRIBING = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "ndim", "device", "layout", "requires_grad")
    ),
    *(getattr(Tensor, name).__get__ for name in ("nbytes", "itemsize", "is_meta", "is_leaf")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point),
}
"""What can be asked without reading a part."""
