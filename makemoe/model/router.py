"""Which experts a token goes to, and with what weight.

A new router is a subclass of `Router` in a file of its own, named in YAML by its class path:

    model:
      router: {class_path: my_router.MyRouter, init_args: {...}}
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemoe.errors import UsageError


class Routing(NamedTuple):
    """What a router decided for N tokens.

    Attributes:
        weights_NK: weight of each chosen expert's output in the sum, float32.
        experts_NK: the experts chosen, int64, the weightiest first, distinct within a token.
        logits_NE: the gate's scores, without noise, float32.
        probs_NE: those scores as a distribution over all experts (before the cut to K), float32.
        dropped_NK: True where an assignment was dropped for want of capacity; None: none was.
    """

    weights_NK: Tensor
    experts_NK: Tensor
    logits_NE: Tensor
    probs_NE: Tensor
    dropped_NK: Tensor | None = None


class Router(nn.Module, ABC):
    """Base of all routers.

    A router must compute in float32 (call `self.linear32`), be deterministic in evaluation, and
    decide for each token alone: a token's routing may not depend on later tokens.

    Args:
        n_embd: width D of a token's vector.
        num_experts: number of experts E.
        top_k: experts per token K, at most E.
    """

    def __init__(self, n_embd: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise UsageError(
                f"top_k {top_k} is not between 1 and num_experts {num_experts}: "
                f"lower top_k or raise num_experts"
            )
        self.n_embd, self.num_experts, self.top_k = n_embd, num_experts, top_k

    @abstractmethod
    def forward(self, x_ND: Tensor) -> Routing:
        """Decide for each of N tokens, (N, D)."""

    @staticmethod
    def linear32(layer: nn.Linear, x_ND: Tensor) -> Tensor:
        """Apply a linear layer in float32, whatever autocast or the weights' type says.

        Rounded scores change which expert is chosen (arXiv:2101.03961, section 2.4).
        """
        if not torch.is_autocast_enabled(x_ND.device.type):
            bias = None if layer.bias is None else layer.bias.float()
            return F.linear(x_ND.float(), layer.weight.float(), bias)
        with torch.autocast(x_ND.device.type, enabled=False):
            return Router.linear32(layer, x_ND)


RouterFactory = Callable[[int, int, int], Router]


class TopKRouter(Router):
    """The K highest scores of one linear layer, weighted by a softmax over those K.

    With K = 1 that softmax is always 1 and the task loss could not train the gate, so the weight is
    the probability among all experts instead (Switch, arXiv:2101.03961, equation 2).
    """

    def __init__(self, n_embd: int, num_experts: int, top_k: int) -> None:
        super().__init__(n_embd, num_experts, top_k)
        self.gate = nn.Linear(n_embd, num_experts)

    def forward(self, x_ND: Tensor) -> Routing:
        logits_NE = self.linear32(self.gate, x_ND)
        return self.choose(logits_NE, logits_NE)

    def choose(self, logits_NE: Tensor, scores_NE: Tensor) -> Routing:
        """Cut to the K highest of `scores_NE`, which may be the logits with noise."""
        kept_NK, experts_NK = scores_NE.topk(self.top_k)
        probs_NE = logits_NE.softmax(-1)
        if self.top_k == 1:
            weights_NK = scores_NE.softmax(-1).gather(-1, experts_NK)
        else:
            weights_NK = kept_NK.softmax(-1)
        return Routing(weights_NK, experts_NK, logits_NE, probs_NE)


class NoisyTopKRouter(TopKRouter):
    """Top-k after noise that the router learns to scale: x W_g + normal * softplus(x W_noise).

    Noisy top-k gating (arXiv:1701.06538, equations 3 to 5). The noise is for training alone:
    evaluation is deterministic.
    """

    def __init__(self, n_embd: int, num_experts: int, top_k: int) -> None:
        super().__init__(n_embd, num_experts, top_k)
        self.noise = nn.Linear(n_embd, num_experts)

    def forward(self, x_ND: Tensor) -> Routing:
        logits_NE = self.linear32(self.gate, x_ND)
        if not self.training:
            return self.choose(logits_NE, logits_NE)
        scale_NE = F.softplus(self.linear32(self.noise, x_ND))
        return self.choose(logits_NE, logits_NE + torch.randn_like(logits_NE) * scale_NE)
