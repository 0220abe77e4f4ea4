"""What follows attention in a block: experts with a router, without one, or both.

A new kind is a subclass of `FeedForward` in its own file, chosen in YAML (`model.feed_forward`).
It is called as `makemoe.model.moe.MoELayer` is.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from makemoe.model.backends import batched
from makemoe.model.experts import Experts
from makemoe.model.router import Routing


class FeedForward(nn.Module, ABC):
    """Base of all layers that follow attention.

    A layer has one `Router` at most. The model finds it among the layer's modules.
    """

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing | None]:
        """The output, (B, T, D), and the routing of the N = B*T tokens; None without a router."""


class DenseLayer(FeedForward):
    """A layer without a router: the sum of all its experts, each of which reads every token.

    Several experts are one feed-forward layer of their total width.

    Args:
        experts: the stacked experts, usually one.
    """

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        x_END = x_BTD.flatten(0, 1).expand(self.experts.num_experts, -1, -1)
        y_END: Tensor = self.experts.dropout(self.experts(x_END, batched))
        return y_END.sum(0).view_as(x_BTD), None


class SharedExperts(FeedForward):
    """Experts that read every token, beside those that a router chose (DeepSeekMoE).

    arXiv:2401.06066, equation 9: the outputs of both are added; shared experts have weight 1.

    Args:
        routed: the layer with the router.
        shared: the layer that every token goes through.
    """

    def __init__(self, routed: FeedForward, shared: DenseLayer) -> None:
        super().__init__()
        self.routed, self.shared = routed, shared

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing | None]:
        y_BTD, routing = self.routed(x_BTD)
        return y_BTD + self.shared(x_BTD)[0], routing
