"""Experts: weights stacked along a first axis E, and the formula each expert computes.

A new kind of expert is a subclass of `Experts` in its own file. It states its formula once, over
rows that are already grouped by expert; the dispatch backend decides how a group is multiplied by
its expert's weights and passes that as the argument `linear`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemoe.errors import UsageError
from makemoe.model.dropout import Dropout


class StackedLinear(nn.Module):
    """E linear layers side by side: weight (E, in, out) and bias (E, out), or None.

    E is the number of experts held here. Because they are stacked, all of them get a gradient in
    every step (zero without tokens), so distributed training need not search for unused parameters.
    Initialised like `nn.Linear`.
    """

    bias: nn.Parameter | None

    def __init__(
        self, num_experts: int, in_features: int, out_features: int, bias: bool = True
    ) -> None:
        super().__init__()
        self.num_experts, self.in_features = num_experts, in_features
        self.out_features = out_features
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(
            torch.empty(num_experts, in_features, out_features).uniform_(-bound, bound)
        )
        self.register_parameter("bias", None)
        if bias:
            shape = num_experts, out_features
            self.bias = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def extra_repr(self) -> str:
        widths = f"{self.num_experts} x ({self.in_features} -> {self.out_features})"
        return widths if self.bias is not None else f"{widths}, bias=False"


GroupedLinear = Callable[[Tensor, StackedLinear], Tensor]
"""Applies to each row the layer of its expert, (..., in) to (..., out)."""


class Experts(nn.Module, ABC):
    """Base of all kinds of experts.

    `dropout` is applied to the outputs by `dispatch`, not in `forward`: a backend may compute the
    rows in any layout, and random numbers must not depend on it.

    Args:
        num_experts: number of experts held here.
        n_embd: width D in and out.
        dropout: fraction of an expert's output dropped in training.
    """

    def __init__(self, num_experts: int, n_embd: int, dropout: float) -> None:
        super().__init__()
        self.num_experts, self.n_embd = num_experts, n_embd
        self.dropout = Dropout(dropout)

    @abstractmethod
    def forward(self, x: Tensor, linear: GroupedLinear) -> Tensor:
        """Compute rows grouped by expert, (..., D) to (..., D), without modifying `x`.

        Draw no random numbers here: the layout of the rows depends on the backend.
        """

    @abstractmethod
    def residual_outputs(self) -> list[StackedLinear]:
        """The layers whose output is added to the residual stream (for scaled initialisation)."""


ExpertsFactory = Callable[[int, int, float], Experts]


ActivationName = Literal["relu", "squared_relu", "gelu", "silu"]


class Activation(NamedTuple):
    """A pointwise nonlinearity between two linear layers.

    Attributes:
        apply: computes it; may overwrite its input.
        kept: how many tensors of the hidden width the backward pass needs, its output included.
    """

    apply: Callable[[Tensor], Tensor]
    kept: int


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 (arXiv:2109.08668, section 3); overwrites `x`."""
    return F.relu_(x).square()


# In place if the backward pass does not need the input; `linear` returns a new tensor.
ACTIVATIONS: dict[ActivationName, Activation] = {
    "relu": Activation(F.relu_, 1),
    "squared_relu": Activation(squared_relu, 2),
    "gelu": Activation(F.gelu, 2),
    "silu": Activation(F.silu, 2),
}


def choose_activation(name: ActivationName) -> Activation:
    """The activation with that name; UsageError if there is none."""
    if name not in ACTIVATIONS:
        raise UsageError(f"activation {name!r} is unknown: use {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def choose_width(hidden: int, default: int, formula: str) -> int:
    """The hidden width of an expert: `hidden`, or if it is 0 the `default`, which `formula` names.

    Raises:
        UsageError: if it is not an integer, or negative. Memory decides what is too large.
    """
    if not isinstance(hidden, int) or isinstance(hidden, bool):
        raise UsageError(f"hidden {hidden!r} is not an integer: use 1 or more, or 0 for {formula}")
    if hidden < 0:
        raise UsageError(f"hidden {hidden} is negative: use 1 or more, or 0 for {formula}")
    return hidden or default


class MLPExperts(Experts):
    """Two linear layers with a pointwise nonlinearity between: act(x W_in + b_in) W_out + b_out.

    Args:
        num_experts: number of experts E.
        n_embd: width D in and out.
        dropout: fraction of the output dropped in training.
        hidden: width F between the two layers; 0 means 4 * n_embd.
        activation: the nonlinearity.
        bias: whether the layers have biases b_in and b_out.
    """

    def __init__(
        self,
        num_experts: int,
        n_embd: int,
        dropout: float,
        hidden: int = 0,
        activation: ActivationName = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__(num_experts, n_embd, dropout)
        self.hidden = choose_width(hidden, 4 * n_embd, "4 * n_embd")
        self.fc_in = StackedLinear(num_experts, n_embd, self.hidden, bias)
        self.fc_out = StackedLinear(num_experts, self.hidden, n_embd, bias)
        self.activation, kept = choose_activation(activation)
        self.kept_hidden = kept * self.hidden

    def forward(self, x: Tensor, linear: GroupedLinear) -> Tensor:
        return linear(self.activation(linear(x, self.fc_in)), self.fc_out)

    def residual_outputs(self) -> list[StackedLinear]:
        return [self.fc_out]


class GatedExperts(Experts):
    """A gated linear unit: (act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out.

    With SiLU it is SwiGLU, with GELU GEGLU, with ReLU ReGLU (arXiv:2002.05202, equation 6).

    Args:
        num_experts: number of experts E.
        n_embd: width D in and out.
        dropout: fraction of the output dropped in training.
        hidden: width F of the gate and of what it multiplies; 0 means 8/3 * n_embd, rounded up to a
            multiple of 16: then there are about as many weights as in `MLPExperts`.
        activation: the nonlinearity of the gate.
        bias: whether the layers have biases.
    """

    def __init__(
        self,
        num_experts: int,
        n_embd: int,
        dropout: float,
        hidden: int = 0,
        activation: ActivationName = "silu",
        bias: bool = False,
    ) -> None:
        super().__init__(num_experts, n_embd, dropout)
        self.hidden = choose_width(hidden, -(-8 * n_embd // 48) * 16, "8/3 * n_embd")
        self.fc_gate = StackedLinear(num_experts, n_embd, self.hidden, bias)
        self.fc_in = StackedLinear(num_experts, n_embd, self.hidden, bias)
        self.fc_out = StackedLinear(num_experts, self.hidden, n_embd, bias)
        self.activation, kept = choose_activation(activation)
        # Besides the gate: what it multiplies, and the product.
        self.kept_hidden = (kept + 2) * self.hidden

    def forward(self, x: Tensor, linear: GroupedLinear) -> Tensor:
        gate = self.activation(linear(x, self.fc_gate))
        return linear(gate * linear(x, self.fc_in), self.fc_out)

    def residual_outputs(self) -> list[StackedLinear]:
        return [self.fc_out]
