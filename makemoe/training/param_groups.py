"""Which weights get which options of the optimizer. A policy is chosen in `model.param_groups`.

A new policy is a subclass of `ParamGroups` in its own file, named in YAML by its class path:

    model:
      param_groups: my_groups.MyGroups
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import nn

from makemoe.errors import UsageError


class Weight(NamedTuple):
    """A parameter of the model, and what it is.

    Attributes:
        name: its name in the model, such as `blocks.0.moe.experts.fc_in.weight`.
        parameter: the parameter.
        owners: the modules that hold it; several if it is used in several places.
        within: all modules that contain it, from the model to its owners.
    """

    name: str
    parameter: nn.Parameter
    owners: tuple[nn.Module, ...]
    within: tuple[nn.Module, ...]

    @property
    def model(self) -> nn.Module:
        """The model it is a weight of."""
        return self.within[0]

    def is_within(self, kind: type[nn.Module]) -> bool:
        """Whether it is a weight of a module of this class, or of a part of one."""
        return any(isinstance(module, kind) for module in self.within)

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix, or a stack of them with one per expert, that multiplies tokens.

        Biases and the gains of norms are not, and embeddings are not, because their rows are looked
        up. A weight that is an embedding and the output layer counts as an embedding. The biases of
        stacked experts have two dimensions, so they are recognised by their name.
        """
        return self.multiplying == self.owners

    @property
    def multiplying(self) -> tuple[nn.Module, ...]:
        """The owners that multiply tokens by it, which embeddings do not."""
        if self.parameter.ndim < 2 or self.name.rpartition(".")[2] == "bias":
            return ()
        return tuple(owner for owner in self.owners if not isinstance(owner, nn.Embedding))


def weights_of(model: nn.Module) -> list[Weight]:
    """The parameters of a model, each once, in the order of `model.parameters()`."""
    owners: dict[int, list[nn.Module]] = defaultdict(list)
    within: dict[int, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].append(module)
        for parameter in module.parameters():
            within[id(parameter)].append(module)
    return [
        Weight(name, parameter, tuple(owners[id(parameter)]), tuple(within[id(parameter)]))
        for name, parameter in model.named_parameters()
    ]


class ParamGroups(ABC):
    """Base class of policies that divide the weights into the optimizer's groups.

    Attributes:
        made_for: what to use the groups with, for messages.
    """

    made_for: ClassVar[str] = "another optimizer"

    @abstractmethod
    def divide(self, weights: Sequence[Weight]) -> list[dict[str, Any]]:
        """Divide the weights into groups, as torch's optimizers take them.

        Each group is a dictionary: `params` is a list of parameters, and every other key is an
        option of the optimizer with its value for this group. Each parameter is in one group.
        """


class OneGroup(ParamGroups):
    """All weights in one group, with the optimizer's own options."""

    def divide(self, weights: Sequence[Weight]) -> list[dict[str, Any]]:
        return [{"params": [weight.parameter for weight in weights]}]


class DecayMatrices(ParamGroups):
    """Weight decay on matrices only: linear layers, gates and experts.

    The optimizer's `weight_decay` applies to them. Biases, norms and embeddings have none.
    """

    def divide(self, weights: Sequence[Weight]) -> list[dict[str, Any]]:
        matrices = [weight.parameter for weight in weights if weight.is_matrix]
        others = [weight.parameter for weight in weights if not weight.is_matrix]
        return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def divided(policy: ParamGroups, weights: Sequence[Weight]) -> list[dict[str, Any]]:
    """The groups of a policy, without empty ones.

    Raises:
        UsageError: if a parameter is in no group or in several.
    """
    groups = policy.divide(weights)
    counts = Counter(id(parameter) for group in groups for parameter in group["params"])
    for weight in weights:
        if (count := counts[id(weight.parameter)]) != 1:
            raise UsageError(
                f"--model.param_groups {type(policy).__name__}: {weight.name} is in {count} "
                "groups: put each weight in one"
            )
    return [group for group in groups if group["params"]]
