"""A simulated Apple GPU: tensors that say they are on `mps`, computed on the CPU.

As the real one, it has no float64, and does not mix with tensors of the CPU.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self, cast
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

MPS = torch.device("mps", 0)
ACROSS = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
"""What may have tensors of two devices."""


class OnMps(Tensor):
    """A tensor on the simulated device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnMps":
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        sizes: dict[str, Any] = {
            "strides": inner.stride(),
            "storage_offset": inner.storage_offset(),
        }
        made: OnMps = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), dtype=inner.dtype, device=MPS, **sizes
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnMps({self.inner})"

    # These ask torch for the device's own code before anything is dispatched.
    def tolist(self) -> Any:
        return self.inner.tolist()

    def item(self) -> Any:
        return self.inner.item()

    def copy_(self, source: Tensor, non_blocking: bool = False) -> "OnMps":
        self.inner.copy_(plain(source))
        return self

    def __int__(self) -> int:
        return int(self.inner)

    def __bool__(self) -> bool:
        return bool(self.inner)

    def __getitem__(self, index: Any) -> "OnMps":
        return OnMps(self.inner[tree_map(plain, index)])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def plain(x: Any) -> Any:
    """The tensor of the CPU behind one of the simulated device; other values as they are."""
    return x.inner if isinstance(x, OnMps) else x


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU; what comes out is on the simulated device if it belongs there."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, OnMps)]
    if there and func not in ACROSS:
        foreign = [t for t in tensors if not isinstance(t, OnMps) and t.ndim]
        assert not foreign, f"Expected all tensors to be on the same device, {func}: {foreign}"
    device = kwargs.get("device")
    belongs = bool(there) if device is None else torch.device(device).type == MPS.type
    if func is torch.ops.aten.copy_.default:
        belongs = isinstance(args[0], OnMps)
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    wrappers = {id(t.inner): t for t in there}
    out = func(*tree_map(plain, args), **tree_map(plain, kwargs))

    def put(t: Any) -> Any:
        if not isinstance(t, Tensor) or not belongs:
            return t
        return wrappers.get(id(t)) if id(t) in wrappers else OnMps(t)

    return tree_map(put, out)


class SimulatedMps(TorchDispatchMode):
    """While it is entered, `.to(MPS)` and `device=MPS` make tensors on the simulated device.

    Without gradients: autograd has a thread per device, and here is none.
    """

    def __enter__(self) -> Self:
        self.stack = ExitStack()
        self.stack.enter_context(torch.no_grad())
        self.stack.enter_context(patch.object(F, "scaled_dot_product_attention", attention))
        # Parameters are made anew, because they become instances of another class.
        change = torch.__future__.set_overwrite_module_params_on_conversion
        self.stack.callback(change, torch.__future__.get_overwrite_module_params_on_conversion())
        change(True)
        return cast(Self, super().__enter__())

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stack.close()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return compute(func, args, kwargs or {})


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, dropout_p: float) -> Tensor:
    """The formula, because the fused kernels are chosen by device before anything is dispatched."""
    formula = torch.ops.aten._scaled_dot_product_attention_math
    return cast(Tensor, formula(q, k, v, None, dropout_p, is_causal)[0])
