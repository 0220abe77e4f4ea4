"""Weight initialisation schemes, chosen in YAML (`model.init`)."""

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from makemoe.errors import UsageError
from makemoe.model.attention import Attention
from makemoe.model.experts import Experts, StackedLinear


class Initializer(ABC):
    """Base class: a distribution for the weight matrices of all linear layers.

    Biases, embeddings and norms keep torch's own initialisation unless a scheme says otherwise.
    """

    def initialize(self, model: nn.Module) -> None:
        """Set the weights of a freshly built model in place."""
        for module in model.modules():
            if isinstance(module, nn.Linear | StackedLinear):
                self.fill(module.weight, module.in_features, module.out_features)

    @abstractmethod
    def fill(self, weight: Tensor, fan_in: int, fan_out: int) -> None:
        """Fill a linear layer's weight, given its numbers of inputs and outputs."""


class KaimingNormal(Initializer):
    """Normal with std sqrt(2 / fan_in) (arXiv:1502.01852, equation 10), on every linear layer.

    Used by makeMoE. On the gates and the output layer it makes the initial loss larger than ln V.
    """

    def fill(self, weight: Tensor, fan_in: int, fan_out: int) -> None:
        nn.init.normal_(weight, std=math.sqrt(2 / fan_in))


class XavierUniform(Initializer):
    """Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, equation 16)."""

    def fill(self, weight: Tensor, fan_in: int, fan_out: int) -> None:
        bound = math.sqrt(6 / (fan_in + fan_out))
        nn.init.uniform_(weight, -bound, bound)


class GPT2Normal(Initializer):
    """Normal with one std everywhere, residual outputs scaled by 1 / sqrt(their number), no bias.

    As in GPT-2 (Radford et al. 2019, section 2.3), where there are 2 * n_layer residual outputs;
    shared experts are outputs of their own. The initial loss is close to ln V.

    Args:
        std: standard deviation of linear and embedding weights.
    """

    def __init__(self, std: float = 0.02) -> None:
        if not 0 <= std < math.inf:
            raise UsageError(f"std {std} is not a standard deviation: use 0 or more")
        self.std = std

    def initialize(self, model: nn.Module) -> None:
        super().initialize(model)
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.std)
            if isinstance(module, nn.Linear | StackedLinear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        outputs = residual_outputs(model)
        for layer in outputs:
            nn.init.normal_(layer.weight, std=self.std / math.sqrt(len(outputs)))

    def fill(self, weight: Tensor, fan_in: int, fan_out: int) -> None:
        nn.init.normal_(weight, std=self.std)


class FanInNormal(Initializer):
    """Normal with std gain / sqrt(fan_in): outputs are as large as inputs; no bias, std 1 embeddings.

    The output layer has weights of zero, so the initial loss is exactly ln V.

    Args:
        gain: factor of the std.
        zero_outputs: whether residual outputs begin with weights of zero, so that blocks begin as
            the identity (arXiv:1901.09321, section 3).
    """

    def __init__(self, gain: float = 1.0, zero_outputs: bool = True) -> None:
        self.gain, self.zero_outputs = gain, zero_outputs

    def initialize(self, model: nn.Module) -> None:
        super().initialize(model)
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
            if isinstance(module, nn.Linear | StackedLinear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.zero_outputs:
            for layer in residual_outputs(model):
                nn.init.zeros_(layer.weight)
        head = getattr(model, "head", None)
        if isinstance(head, nn.Linear):
            nn.init.zeros_(head.weight)

    def fill(self, weight: Tensor, fan_in: int, fan_out: int) -> None:
        nn.init.normal_(weight, std=self.gain / math.sqrt(fan_in))


def residual_outputs(model: nn.Module) -> list[nn.Linear | StackedLinear]:
    """The layers whose output is added to the residual stream."""
    outputs: list[nn.Linear | StackedLinear] = []
    for module in model.modules():
        if isinstance(module, Attention | Experts):
            outputs.extend(module.residual_outputs())
    return outputs
