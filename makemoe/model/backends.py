"""Backends: how the rows of each expert are multiplied by that expert's weights.

Outputs and gradients agree up to rounding, and no backend draws random numbers, so which one is
used affects speed only. A new backend is a subclass of `Backend` in its own file; an object of it
can be passed wherever a word like `loop` can.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from makemoe.errors import UsageError
from makemoe.model.experts import Experts, StackedLinear

BackendName = Literal["auto", "loop", "padded", "rounded", "grouped"]

GROUPED_KERNELS = 9, 10
"""Major CUDA capabilities for which torch has a kernel of grouped_mm (bf16 only)."""

ROWS = 16
"""The length of a group is rounded up to a multiple of this many rows, or of more if groups are
long."""

MOST_PADDING = 2
"""A known length of the groups is used if padding to it at most multiplies the rows by this."""


class Groups(NamedTuple):
    """Which rows belong to which expert: one group per expert, in the order of the experts.

    Attributes:
        counts_E: number of rows per expert, of all experts of the layer.
        longest: rows beyond this many in a group have weight zero, so a backend may return anything
            finite for them; None: every row counts.
    """

    counts_E: Tensor
    longest: int | None = None


class Backend(ABC):
    """Base class of all backends."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, x_MD: Tensor, groups: Groups, experts: Experts) -> Tensor:
        """Apply the experts to rows in expert order, (M, D) to (M, D)."""

    def refusal(self, x: Tensor, experts: Experts) -> str | None:
        """Why these experts cannot be computed for such rows; None if they can."""
        return None

    def check(self, x: Tensor, experts: Experts) -> None:
        """Raise UsageError if these experts cannot be computed for such rows."""
        if reason := self.refusal(x, experts):
            raise UsageError(f"dispatch {self.name} {reason}, or use dispatch auto")

    def description(self, x: Tensor, experts: Experts) -> str:
        """The name shown to the user."""
        return self.name


class Loop(Backend):
    """One matrix product per expert; the simplest backend, so read it first."""

    name = "loop"

    def __call__(self, x_MD: Tensor, groups: Groups, experts: Experts) -> Tensor:
        counts = groups.counts_E.tolist()

        def linear(x_MI: Tensor, layer: StackedLinear) -> Tensor:
            rows, weights = torch.split(x_MI, counts), layer.weight.unbind()
            biases = [None] * len(weights) if layer.bias is None else layer.bias.unbind()
            each = zip(rows, weights, biases, strict=True)
            return torch.cat([F.linear(x, w.t(), b) for x, w, b in each])

        y_MD: Tensor = experts(x_MD, linear)
        return y_MD


class Padded(Backend):
    """One batched matrix product over groups padded to one length C.

    C is `Groups.longest` if that is not much more than the mean. Otherwise it is measured, for
    which a GPU must be waited for. It is rounded up to a multiple of a quarter of the mean load, so
    that few shapes occur: a CPU builds a kernel for every new shape of a bf16 product.
    """

    name = "padded"

    def __call__(self, x_MD: Tensor, groups: Groups, experts: Experts) -> Tensor:
        counts_E, (M, D) = groups.counts_E, x_MD.shape
        E, C = len(counts_E), self.length(groups, M)
        expert_M = torch.repeat_interleave(counts_E, output_size=M)
        begins_E = counts_E.cumsum(0) - counts_E
        rank_M = torch.arange(M, device=x_MD.device) - begins_E[expert_M]
        # Rows beyond `longest` go to one more row at the end, which nobody reads.
        beyond = int(groups.longest is not None)
        rows_M = torch.where(rank_M < C, expert_M * C + rank_M, E * C)
        x_RD = x_MD.new_zeros(E * C + beyond, D).index_copy(0, rows_M, x_MD)
        x_ECD = x_RD[: E * C].view(E, C, D)
        y_ECD: Tensor = experts(x_ECD, batched)
        return y_ECD.flatten(0, 1).index_select(0, rows_M.clamp(max=E * C - 1))

    def length(self, groups: Groups, rows: int) -> int:
        """The length C to which groups with so many rows in total are padded."""
        E, longest = len(groups.counts_E), groups.longest
        if longest is not None and longest * E <= MOST_PADDING * rows:
            return longest
        quantum = max(8, rows // E // 4)
        return -(-int(groups.counts_E.max()) // quantum) * quantum


class Grouped(Backend):
    """One grouped matrix product, `torch.nn.functional.grouped_mm`: no padding.

    In bf16 on CUDA devices of capability 9 and 10 it does not wait for the device; elsewhere it is
    a loop inside torch.
    """

    name = "grouped"

    def __call__(self, x_MD: Tensor, groups: Groups, experts: Experts) -> Tensor:
        self.check(x_MD, experts)
        dtype, counts_E = product_dtype(x_MD), groups.counts_E
        ends_E = counts_E.cumsum(0).to(torch.int32)
        expert_M = torch.repeat_interleave(counts_E, output_size=x_MD.shape[0])

        def linear(x_MI: Tensor, layer: StackedLinear) -> Tensor:
            y_MO = F.grouped_mm(x_MI.to(dtype), layer.weight.to(dtype), offs=ends_E)
            if layer.bias is not None:
                y_MO += layer.bias.to(dtype).index_select(0, expert_M)
            return y_MO

        y_MD: Tensor = experts(x_MD, linear)
        return y_MD

    def refusal(self, x: Tensor, experts: Experts) -> str | None:
        dtype = product_dtype(x)
        if dtype == torch.float64:
            return "does not compute in float64: use float32"
        if x.device.type == "cpu" and torch.compiler.is_compiling():
            # torch traces it as its CUDA kernel, whose dtype and strides it then requires.
            return "cannot be compiled for a CPU: do not compile the model"
        layers = [layer for layer in experts.modules() if isinstance(layer, StackedLinear)]
        widths = {width for layer in layers for width in (layer.in_features, layer.out_features)}
        if any(width * dtype.itemsize % 16 for width in widths):
            return (
                f"does not support these widths in {dtype}: make n_embd and the experts' hidden "
                f"width multiples of {16 // dtype.itemsize}"
            )
        return None


class Rounded(Backend):
    """One grouped product over groups whose lengths are rounded up, each by itself.

    Few shapes occur, as in `Padded` (a CPU builds a kernel for every new shape of a 16-bit
    product), but uneven groups are not padded to the longest. A row's bias is added by a product
    with a one-hot matrix, whose backward pass sums in float32.
    """

    name = "rounded"

    def __call__(self, x_MD: Tensor, groups: Groups, experts: Experts) -> Tensor:
        self.check(x_MD, experts)
        dtype, counts_E, (M, D) = product_dtype(x_MD), groups.counts_E, x_MD.shape
        E = len(counts_E)
        quantum = max(1, M // E // 8 // ROWS) * ROWS
        lengths_E = (counts_E + quantum - 1) // quantum * quantum
        ends_E = lengths_E.cumsum(0)
        shift_E = ends_E - lengths_E - (counts_E.cumsum(0) - counts_E)
        rows_M = torch.arange(M, device=x_MD.device)
        rows_M += shift_E.repeat_interleave(counts_E, output_size=M)
        R = int(ends_E[-1])
        x_RD = x_MD.new_zeros(R, D, dtype=dtype).index_copy(0, rows_M, x_MD.to(dtype))
        expert_R = torch.repeat_interleave(lengths_E, output_size=R)
        one_hot_RE, ends_E = F.one_hot(expert_R, E).to(dtype), ends_E.to(torch.int32)

        def linear(x_RI: Tensor, layer: StackedLinear) -> Tensor:
            y_RO = F.grouped_mm(x_RI.to(dtype), layer.weight.to(dtype), offs=ends_E)
            return y_RO if layer.bias is None else y_RO.addmm_(one_hot_RE, layer.bias.to(dtype))

        y_RD: Tensor = experts(x_RD, linear)
        return y_RD.index_select(0, rows_M)

    def refusal(self, x: Tensor, experts: Experts) -> str | None:
        return Grouped().refusal(x, experts)


class Auto(Backend):
    """The backend measured fastest for the device and dtype that supports these sizes."""

    name = "auto"

    def __call__(self, x_MD: Tensor, groups: Groups, experts: Experts) -> Tensor:
        return self.choice(x_MD, experts)(x_MD, groups, experts)

    def choice(self, x: Tensor, experts: Experts) -> Backend:
        """The backend to use for such rows."""
        if Grouped().refusal(x, experts):
            return Padded()
        if grouped_is_fast(x):
            return Grouped()
        return Rounded() if x.device.type == "cpu" else Padded()

    def description(self, x: Tensor, experts: Experts) -> str:
        return f"{self.choice(x, experts).name} (auto)"


def batched(x_ECI: Tensor, layer: StackedLinear) -> Tensor:
    """Apply each expert's layer to C rows of its own, (E, C, in) to (E, C, out)."""
    if layer.bias is None:
        return torch.bmm(x_ECI, layer.weight)
    return torch.baddbmm(layer.bias[:, None], x_ECI, layer.weight)


def choose_backend(backend: BackendName | Backend) -> Backend:
    """The backend with that name, or the one that is given.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(backend, Backend):
        return backend
    named = {known.name: known for known in (Auto(), Loop(), Padded(), Rounded(), Grouped())}
    if backend not in named:
        raise UsageError(f"dispatch {backend!r} is unknown: use {', '.join(named)} or a Backend")
    return named[backend]


def grouped_is_fast(x: Tensor) -> bool:
    """Whether grouped_mm is faster than padding for such rows, and does not wait for a GPU.

    On other GPUs and in other dtypes, torch copies the counts to the CPU and loops.
    """
    dtype = product_dtype(x)
    if x.device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(x.device)
        return dtype == torch.bfloat16 and major in GROUPED_KERNELS
    return x.device.type == "cpu" and dtype == torch.float32


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a matrix product with x; autocast does not handle grouped_mm."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
