"""Routers choose the experts of each token, and their weights.

A new router is a subclass of `Router` in its own file, named in YAML by its class path:

    model:
      router: {class_path: my_router.MyRouter, init_args: {...}}
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemoe.errors import UsageError


class Routing(NamedTuple):
    """A router's decision for N tokens; all scores are float32, or float64 if the model is.

    Attributes:
        weights_NK: weight of each chosen expert's output in the sum.
        experts_NK: the chosen experts, int64, largest weight first, distinct within a token.
        logits_NE: the gate's scores, without noise.
        probs_NE: those scores as a distribution over all experts (before top-k).
        dropped_NK: True for assignments dropped because of capacity; None: none was dropped.
        noisy_NE: the noisy scores by which experts were chosen; None: no noise.
        noise_scale_NE: standard deviation of that noise.
    """

    weights_NK: Tensor
    experts_NK: Tensor
    logits_NE: Tensor
    probs_NE: Tensor
    dropped_NK: Tensor | None = None
    noisy_NE: Tensor | None = None
    noise_scale_NE: Tensor | None = None

    @property
    def num_experts(self) -> int:
        """The number of experts in all, which may be more than are held here."""
        return self.logits_NE.shape[1]


class Router(nn.Module, ABC):
    """Base class of all routers.

    A router must compute in float32 (call `self.linear32`), be deterministic in evaluation, and
    decide for each token independently: a token's routing must not depend on later tokens. All
    routers of a model have the same E and K, because metrics hold all layers in one array.

    Args:
        n_embd: width D of a token's vector.
        num_experts: number of experts E in all, wherever they are held.
        top_k: experts per token K, at most E.

    Raises:
        UsageError: if K is not from 1 to E.
    """

    derived: ClassVar[tuple[str, ...]] = ()
    """Buffers that are worked out before an evaluation, for the weights it uses."""

    def __init__(self, n_embd: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise UsageError(
                f"top_k {top_k} must be between 1 and num_experts {num_experts}: "
                f"lower top_k or raise num_experts"
            )
        self.n_embd, self.num_experts, self.top_k = n_embd, num_experts, top_k

    @abstractmethod
    def forward(self, x_ND: Tensor) -> Routing:
        """Route N tokens, (N, D)."""

    @staticmethod
    def linear32(layer: nn.Linear, x_ND: Tensor) -> Tensor:
        """Apply a linear layer in float32, or float64 if x is, regardless of autocast and weights.

        Rounded scores change which expert is chosen (arXiv:2101.03961, section 2.4).
        """
        if not torch.is_autocast_enabled(x_ND.device.type):
            dtype = torch.promote_types(x_ND.dtype, torch.float32)
            bias = None if layer.bias is None else layer.bias.to(dtype)
            return F.linear(x_ND.to(dtype), layer.weight.to(dtype), bias)
        with torch.autocast(x_ND.device.type, enabled=False):
            return Router.linear32(layer, x_ND)


RouterFactory = Callable[[int, int, int], Router]


class TopKRouter(Router):
    """The K highest scores of one linear layer, weighted by a softmax over those K.

    With K = 1 that softmax is always 1 and the task loss cannot train the gate, so the weight is
    the probability among all experts instead (Switch, arXiv:2101.03961, equation 2).

    Args:
        n_embd: width D of a token's vector.
        num_experts: number of experts E.
        top_k: experts per token K, at most E.
        bias: whether the gate has a bias.
    """

    def __init__(self, n_embd: int, num_experts: int, top_k: int, bias: bool = True) -> None:
        super().__init__(n_embd, num_experts, top_k)
        self.gate = nn.Linear(n_embd, num_experts, bias)

    def forward(self, x_ND: Tensor) -> Routing:
        logits_NE = self.linear32(self.gate, x_ND)
        return self.choose(logits_NE, logits_NE)

    def choose(self, logits_NE: Tensor, scores_NE: Tensor) -> Routing:
        """Choose the K highest of `scores_NE`, which may be the noisy logits."""
        kept_NK, experts_NK = scores_NE.topk(self.top_k)
        probs_NE = logits_NE.softmax(-1)
        if self.top_k == 1:
            weights_NK = scores_NE.softmax(-1).gather(-1, experts_NK)
        else:
            weights_NK = kept_NK.softmax(-1)
        return Routing(weights_NK, experts_NK, logits_NE, probs_NE)


class NoisyTopKRouter(TopKRouter):
    """Top-k with noise whose scale is learned: x W_g + normal * softplus(x W_noise).

    Noisy top-k gating (arXiv:1701.06538, equations 3 to 5). The noise is used in training only;
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
        noisy_NE = logits_NE + torch.randn_like(logits_NE) * scale_NE
        routing = self.choose(logits_NE, noisy_NE)
        return routing._replace(noisy_NE=noisy_NE, noise_scale_NE=scale_NE)


LOG_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": F.logsigmoid,
    "softmax": partial(F.log_softmax, dim=-1),
}


EXACT = "bias_E", "eval_shift_E"
"""Buffers of `BiasedTopKRouter` whose dtype never changes."""


class BiasedTopKRouter(TopKRouter):
    """Top-k of scores plus a bias per expert without gradient, for balancing without a loss.

    The bias affects only which experts are chosen (arXiv:2408.15664, equation 3): the weights are
    the scores of the chosen experts, normalised to sum to 1; with K = 1 the score itself, so that
    the task loss trains the gate. `makemoe.training.balance.BiasBalance` updates the bias, and a
    shift that is added in evaluation, where scores differ slightly without dropout.

    Args:
        n_embd: width D of a token's vector.
        num_experts: number of experts E.
        top_k: experts per token K, at most E.
        score: score of an expert: the `sigmoid` of its logit, or the `softmax` over all logits.
        bias: whether the gate has a bias, which is learned and part of the logits.

    Raises:
        UsageError: if the score is neither of the two, or K is not from 1 to E.
    """

    derived = ("eval_shift_E",)
    bias_E: Tensor
    eval_shift_E: Tensor

    def __init__(
        self,
        n_embd: int,
        num_experts: int,
        top_k: int,
        score: Literal["sigmoid", "softmax"] = "sigmoid",
        bias: bool = True,
    ) -> None:
        super().__init__(n_embd, num_experts, top_k, bias)
        if score not in LOG_SCORES:
            raise UsageError(f"BiasedTopKRouter score {score!r}: use {' or '.join(LOG_SCORES)}")
        self.score, self.log_score = score, LOG_SCORES[score]
        for name in EXACT:
            self.register_buffer(name, torch.zeros(num_experts, dtype=torch.float32))

    @property
    def used_bias_E(self) -> Tensor:
        """The bias for the current mode, training or evaluation."""
        return self.bias_E if self.training else self.bias_E + self.eval_shift_E

    def scores(self, logits_NE: Tensor) -> Tensor:
        """Scores between 0 and 1, to which the bias is added."""
        return self.log_score(logits_NE).exp()

    def forward(self, x_ND: Tensor) -> Routing:
        logits_NE = self.linear32(self.gate, x_ND)
        # Logarithms, because the scores of a token may all be too small to divide by their sum.
        log_scores_NE = self.log_score(logits_NE)
        biased_NE = log_scores_NE.detach().exp() + self.used_bias_E
        chosen_NK = biased_NE.topk(self.top_k).indices
        log_NK, order_NK = log_scores_NE.gather(-1, chosen_NK).sort(descending=True)
        weights_NK = log_NK.exp() if self.top_k == 1 else log_NK.softmax(-1)
        experts_NK = chosen_NK.gather(-1, order_NK)
        return Routing(weights_NK, experts_NK, logits_NE, log_scores_NE.softmax(-1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and convert like any module, but keep the bias in float32.

        In bfloat16, adding 0.001 to a bias of 0.5 would change nothing.
        """
        exact = [self.get_buffer(name) for name in EXACT]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer_E in zip(EXACT, exact, strict=True):
            setattr(self, name, buffer_E.to(self.get_buffer(name).device))
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load like any module; older checkpoints have no `eval_shift_E`."""
        state_dict.setdefault(f"{prefix}eval_shift_E", torch.zeros_like(self.eval_shift_E))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
