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
        for layer in linear_layers(model):
            self.fill(layer.weight, layer.in_features, layer.out_features)

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

    Raises:
        UsageError: if std is negative or not finite.
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
        zero_biases(model)
        outputs = residual_outputs(model)
        for layer in outputs:
            nn.init.normal_(layer.weight, std=self.std / math.sqrt(len(outputs)))

    def fill(self, weight: Tensor, fan_in: int, fan_out: int) -> None:
        nn.init.normal_(weight, std=self.std)


class FanInNormal(Initializer):
    """Normal with std gain / sqrt(fan_in), so that outputs are as large as inputs; no bias.

    The output layer has weights of zero, so the initial loss is exactly ln V, and embeddings have
    std 1, the size of what norms return. With tied embeddings both are one matrix: its std, and
    that of all embeddings, is 1 / n_embd. Even a token's own logit is then 1 at most, and the
    initial loss is close to ln V.

    Args:
        gain: factor of the std.
        zero_outputs: whether residual outputs are zero, as in `ZeroOutputs`.

    Raises:
        UsageError: if gain is not above 0 and finite.
    """

    def __init__(self, gain: float = 1.0, zero_outputs: bool = True) -> None:
        if not 0 < gain < math.inf:
            raise UsageError(f"gain {gain} is out of range: use a number above 0; 1.0 is usual")
        self.gain, self.zero_outputs = gain, zero_outputs

    def initialize(self, model: nn.Module) -> None:
        super().initialize(model)
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        head = getattr(model, "head", None)
        tied = any(head is not None and head.weight is layer.weight for layer in embeddings)
        for layer in embeddings:
            nn.init.normal_(layer.weight, std=1 / layer.embedding_dim if tied else 1.0)
        if head is not None and not tied:
            nn.init.zeros_(head.weight)
        zero_biases(model)
        if self.zero_outputs:
            zero_residual_outputs(model)

    def fill(self, weight: Tensor, fan_in: int, fan_out: int) -> None:
        nn.init.normal_(weight, std=self.gain / math.sqrt(fan_in))


class ZeroOutputs(Initializer):
    """Another scheme, but residual outputs are zero: blocks begin as the identity.

    As in Fixup (arXiv:1901.09321, section 3), the gradient of a deep model then does not depend on
    its depth. All other weights are those that the scheme gives with the same seed.

    Args:
        scheme: sets all other weights.
    """

    def __init__(self, scheme: Initializer) -> None:
        self.scheme = scheme

    def initialize(self, model: nn.Module) -> None:
        self.scheme.initialize(model)
        zero_residual_outputs(model)

    def fill(self, weight: Tensor, fan_in: int, fan_out: int) -> None:
        self.scheme.fill(weight, fan_in, fan_out)


def linear_layers(model: nn.Module) -> list[nn.Linear | StackedLinear]:
    """All linear layers of a model, in its order."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | StackedLinear)]


def residual_outputs(model: nn.Module) -> list[nn.Linear | StackedLinear]:
    """The layers whose output is added to the residual stream."""
    outputs: list[nn.Linear | StackedLinear] = []
    for module in model.modules():
        if isinstance(module, Attention | Experts):
            outputs.extend(module.residual_outputs())
    return outputs


def zero_biases(model: nn.Module) -> None:
    """Set the biases of all linear layers to zero."""
    for layer in linear_layers(model):
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def zero_residual_outputs(model: nn.Module) -> None:
    """Set weights and biases of the layers that add to the residual stream to zero."""
    for layer in residual_outputs(model):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
