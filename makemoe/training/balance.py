"""Ways to keep the experts evenly loaded: classes to choose, and combine, in `model.balancers`.

A balancer is a subclass of `BalanceLoss`, or of `Balancer`, named in YAML by its class path:

    model:
      balancers:
        - {class_path: makemoe.training.balance.SwitchLoss, init_args: {weight: 0.01}}
        - {class_path: makemoe.training.balance.ZLoss}

What they see is the whole optimizer step. A loss is a function of token means over all processes
and all micro-batches; its gradient goes through this process's tokens. Averaged over processes
that is exactly the gradient of the loss of the global batch, for losses that are no mean over
tokens as well. Over the micro-batches of an accumulated step the means are running ones, exact at
the last, because the first gradients are taken before the last tokens are seen
(arXiv:2501.11873).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed
from torch import Tensor

from makemoe.errors import UsageError
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, Router, Routing

LEAST_NOISE = 1e-6
"""Below this a scale of noise would make the gradient of its quotient infinite."""


RoutingsOf = Callable[[int], Iterable[Sequence[Routing]]]


class Balancer(ABC):
    """Base of all ways to balance; by itself it does nothing."""

    def check(self, routers: Sequence[Router]) -> None:
        """Raise UsageError if it cannot balance these routers."""
        return

    def after_step(self, routers: Sequence[Router], counts_LE: Tensor) -> None:
        """Act once an optimizer step is done.

        Args:
            routers: one a layer.
            counts_LE: assignments the step gave each expert, over processes and micro-batches.
        """
        return

    def before_evaluation(self, routers: Sequence[Router], routings_of: RoutingsOf) -> None:
        """Act before a text is evaluated in the course of a training.

        Args:
            routers: one a layer.
            routings_of: gives the routings, in evaluation, of as many tokens of the training text
                as it is asked for, batch by batch.
        """
        return

    @abstractmethod
    def setting(self) -> dict[str, float]:
        """Its strength, by the name to log it by."""


class BalanceLoss(Balancer):
    """Base of the losses added to the cross-entropy in training; evaluation knows none of them.

    Args:
        weight: factor of the loss.
    """

    def __init__(self, weight: float) -> None:
        self.weight = not_negative(self, "weight", weight)

    def setting(self) -> dict[str, float]:
        return {"weight": self.weight}

    @abstractmethod
    def measure(self, routing: Routing) -> Tensor:
        """What the loss is a function of: a mean over N tokens, of any length S, float32."""

    @abstractmethod
    def loss(self, mean_LS: Tensor, load_LE: Tensor) -> Tensor:
        """The loss of each layer, (L,).

        Args:
            mean_LS: what `measure` gave, over all tokens of the step so far.
            load_LE: shares of the step's assignments so far, rows adding up to 1.
        """


class SwitchLoss(BalanceLoss):
    """E * sum_e f_e * P_e, load shares times mean probabilities (arXiv:2101.03961, equation 4).

    f is the share of all N*K assignments and P the mean of the full distribution, so that perfect
    balance is 1.0 for every K, and E / K the worst. Dropped assignments count: they were asked for.
    """

    def __init__(self, weight: float = 0.01) -> None:
        super().__init__(weight)

    def measure(self, routing: Routing) -> Tensor:
        return routing.probs_NE.mean(0)

    def loss(self, mean_LS: Tensor, load_LE: Tensor) -> Tensor:
        return load_LE.shape[1] * (load_LE * mean_LS).sum(1)


class ImportanceLoss(BalanceLoss):
    """Squared coefficient of variation of the experts' summed weights.

    arXiv:1701.06538, equations 6 and 7: the importance of an expert is the sum of the combine
    weights that tokens gave it. 0 is perfect balance; E - 1 the worst.
    """

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def measure(self, routing: Routing) -> Tensor:
        unchosen_NE = torch.zeros_like(routing.probs_NE)
        return unchosen_NE.scatter(1, routing.experts_NK, routing.weights_NK).mean(0)

    def loss(self, mean_LS: Tensor, load_LE: Tensor) -> Tensor:
        return squared_variation(mean_LS)


class LoadLoss(BalanceLoss):
    """Squared coefficient of variation of a smooth estimate of the experts' loads.

    arXiv:1701.06538, appendix A, equations 8 to 11: the load of an expert is estimated by the
    probability, if its own noise were drawn again, that it is among the K chosen; unlike a count
    that has a gradient. Needs a router with noise.
    """

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def check(self, routers: Sequence[Router]) -> None:
        for router in routers:
            if not isinstance(router, NoisyTopKRouter):
                raise UsageError(
                    "LoadLoss estimates loads from the router's noise, and "
                    f"{type(router).__name__} has none: take --model.router NoisyTopKRouter or "
                    "another balancer"
                )
            if router.top_k == router.num_experts:
                raise UsageError(
                    f"LoadLoss with top_k {router.top_k} of {router.num_experts} experts: every "
                    "load is even, leave it out"
                )

    def measure(self, routing: Routing) -> Tensor:
        noisy_NE, scale_NE = routing.noisy_NE, routing.noise_scale_NE
        assert noisy_NE is not None
        assert scale_NE is not None
        K = routing.experts_NK.shape[1]
        # An expert is chosen when it beats the K-th best of the others.
        margin_NE = routing.logits_NE - kth_of_others(noisy_NE, K)
        margin_NE = margin_NE / scale_NE.clamp_min(LEAST_NOISE)
        chance_NE: Tensor = torch.special.ndtr(margin_NE)
        return chance_NE.mean(0)

    def loss(self, mean_LS: Tensor, load_LE: Tensor) -> Tensor:
        return squared_variation(mean_LS)


class ZLoss(BalanceLoss):
    """Mean over tokens of logsumexp(logits)^2, which keeps the gate's scores small.

    ST-MoE (arXiv:2202.08906, equation 5), where the weight is 0.001. It steadies the router; by
    itself it balances nothing.
    """

    def __init__(self, weight: float = 0.001) -> None:
        super().__init__(weight)

    def measure(self, routing: Routing) -> Tensor:
        return routing.logits_NE.logsumexp(1).square().mean(0, keepdim=True)

    def loss(self, mean_LS: Tensor, load_LE: Tensor) -> Tensor:
        return mean_LS[:, 0]


class BiasBalance(Balancer):
    """Moves the bias of each expert by one fixed step against its load, without a loss.

    arXiv:2408.15664, algorithm 1: b_e += rate * sign(mean count - count_e), once per optimizer
    step. Needs a router with a bias.

    That evens the loads of training, as a mean over many steps. Those of evaluation, without
    dropout and with the weights of one moment, are some percents off. `calibration_tokens` evens
    them too: before each validation so many tokens of the training text are routed as evaluation
    does it, and what evaluation adds to the biases is set by `even_bias`. Training goes on as it
    would have. Every process spends on it somewhat more than on validating on so many tokens, and
    holds their logits of all layers.

    Args:
        update_rate: the step, in units of the scores, which lie between 0 and 1.
        calibration_tokens: how many tokens to calibrate on, the same at every validation, rounded
            up to whole windows; 0: not at all.
    """

    def __init__(self, update_rate: float = 0.001, calibration_tokens: int = 0) -> None:
        self.update_rate = not_negative(self, "update_rate", update_rate)
        self.calibration_tokens = int(
            not_negative(self, "calibration_tokens", calibration_tokens, 65536)
        )

    def setting(self) -> dict[str, float]:
        return {"update_rate": self.update_rate}

    def check(self, routers: Sequence[Router]) -> None:
        for router in routers:
            if not isinstance(router, BiasedTopKRouter):
                raise UsageError(
                    f"BiasBalance moves the router's bias, and {type(router).__name__} has none: "
                    "take --model.router BiasedTopKRouter or another balancer"
                )

    def after_step(self, routers: Sequence[Router], counts_LE: Tensor) -> None:
        steps_LE = self.update_rate * (counts_LE.mean(1, keepdim=True) - counts_LE).sign()
        for router, steps_E in zip(routers, steps_LE, strict=True):
            assert isinstance(router, BiasedTopKRouter)
            router.bias_E += steps_E

    def before_evaluation(self, routers: Sequence[Router], routings_of: RoutingsOf) -> None:
        if self.calibration_tokens == 0:
            return
        batches = [
            torch.stack([routing.logits_NE for routing in routings])
            for routings in routings_of(self.calibration_tokens)
        ]
        for router, logits_NE in zip(routers, torch.cat(batches, 1), strict=True):
            assert isinstance(router, BiasedTopKRouter)
            bias_E = even_bias(router.scores(logits_NE), router.used_bias_E, router.top_k)
            shift_E = bias_E - router.bias_E
            if is_distributed():
                # All have computed it from the same tokens; on a GPU, rounding may differ.
                torch.distributed.broadcast(shift_E, 0)
            router.eval_shift_E.copy_(shift_E - shift_E.mean())


class Balance:
    """The balancers of a run, and the step as they see it.

    All they measure goes through one sum over processes a micro-batch. Nothing waits for the
    device.

    Args:
        balancers: of different classes.
        routers: one a layer.

    Raises:
        UsageError: for balancers that do not fit the routers, or a class given twice.
    """

    def __init__(self, balancers: Sequence[Balancer], routers: Sequence[Router]) -> None:
        self.balancers = {type(balancer).__name__: balancer for balancer in balancers}
        self.losses = {k: b for k, b in self.balancers.items() if isinstance(b, BalanceLoss)}
        self.routers = routers
        if len(self.balancers) < len(balancers):
            raise UsageError(
                "--model.balancers: a class is given twice: give each once, with one weight"
            )
        for balancer in balancers:
            balancer.check(routers)
        self.sums: Tensor | None = None
        """Counts, then measures summed over tokens: the step so far, over all processes."""

    def raw_losses(self, routings: Sequence[Routing]) -> dict[str, Tensor]:
        """Add a micro-batch to the step; the unweighted loss of each balancer that has one.

        Each is the mean over layers, a float32 scalar of the step so far, whose gradient goes
        through this micro-batch and is to be averaged over processes by their shares of the tokens.
        """
        if not self.balancers:
            return {}
        N, top_k = routings[0].experts_NK.shape
        counts_LE = count_assignments(routings).float()
        own = [torch.stack([b.measure(r) for r in routings]) for b in self.losses.values()]
        parts = [counts_LE, *(mean_LS.detach() * N for mean_LS in own)]
        sums = torch.cat([part.flatten() for part in parts])
        if is_distributed():
            torch.distributed.all_reduce(sums)
        self.sums = sums if self.sums is None else self.sums + sums
        counts, *measured = torch.split(self.sums, [part.numel() for part in parts])
        counts_LE = counts.view_as(counts_LE)
        load_LE = counts_LE / counts_LE.sum(1, keepdim=True)
        tokens = counts_LE[0].sum() / top_k
        losses = {}
        for (name, balancer), own_LS, total in zip(self.losses.items(), own, measured, strict=True):
            # The value of all tokens, with the gradient of these.
            mean_LS = (total / tokens).view_as(own_LS) + (own_LS - own_LS.detach())
            losses[name] = balancer.loss(mean_LS, load_LE).mean()
        return losses

    def weighted(self, losses: dict[str, Tensor]) -> Tensor | float:
        """The sum of the losses by their weights."""
        return sum(self.losses[name].weight * loss for name, loss in losses.items())

    def end_step(self) -> None:
        """Let balancers act on the optimizer step that is done, and begin the next."""
        if self.sums is None:
            return
        L, E = len(self.routers), self.routers[0].num_experts
        counts_LE = self.sums[: L * E].view(L, E)
        for balancer in self.balancers.values():
            balancer.after_step(self.routers, counts_LE)
        self.sums = None

    def before_evaluation(self, routings_of: RoutingsOf) -> None:
        """Let balancers act before a text is evaluated in the course of a training."""
        for balancer in self.balancers.values():
            balancer.before_evaluation(self.routers, routings_of)

    def figures(self, losses: dict[str, Tensor]) -> dict[str, Tensor | float]:
        """Raw losses, and every balancer's strength beside, by the names they are logged by."""
        figures: dict[str, Tensor | float] = {k: loss.detach() for k, loss in losses.items()}
        for name, balancer in self.balancers.items():
            figures |= {f"{name}_{what}": value for what, value in balancer.setting().items()}
        return figures


def count_assignments(routings: Sequence[Routing]) -> Tensor:
    """How many assignments each expert of each layer got, int64 (L, E), dropped ones included."""
    L, E = len(routings), routings[0].probs_NE.shape[1]
    experts_LNK = torch.stack([routing.experts_NK for routing in routings])
    # One count over all layers: expert e of layer l is number l * E + e. A bincount would wait for
    # the device.
    first_number_L = torch.arange(0, L * E, E, device=experts_LNK.device)
    numbers = (experts_LNK + first_number_L[:, None, None]).flatten()
    counts = numbers.new_zeros(L * E).scatter_add(0, numbers, torch.ones_like(numbers))
    return counts.view(L, E)


def even_bias(scores_NE: Tensor, bias_E: Tensor, top_k: int, sweeps: int = 10) -> Tensor:
    """A bias with which each expert is among the `top_k` of nearly equally many tokens, (E,).

    Each sweep moves every expert half way to the bias at which it would have its share, N K / E,
    if the others stayed: that quantile of what it lacks, token by token, to be chosen. These are
    the dual variables of giving N tokens to experts of equal room (arXiv:2502.15451). Tokens whose
    scores do not differ, such as those too small beside the bias, cannot be told apart by any.

    Args:
        scores_NE: of N tokens, without bias.
        bias_E: where to begin.
        top_k: experts per token K.
        sweeps: how many.
    """
    N, E = scores_NE.shape
    share = max(1, round(N * top_k / E))
    if top_k == E:
        return bias_E
    for _ in range(sweeps):
        lacks_NE = kth_of_others(scores_NE + bias_E, top_k) - scores_NE
        bias_E = (bias_E + lacks_NE.kthvalue(share, 0).values) / 2
    return bias_E


def kth_of_others(scores_NE: Tensor, top_k: int) -> Tensor:
    """For each expert, the K-th best score among the others: what it must beat to be chosen."""
    best_NK1 = scores_NE.topk(top_k + 1).values
    kth_N1, next_N1 = best_NK1[:, top_k - 1 : top_k], best_NK1[:, top_k:]
    return torch.where(scores_NE >= kth_N1, next_N1, kth_N1)


def squared_variation(x_LE: Tensor) -> Tensor:
    """The squared coefficient of variation of each row, variance / mean^2, (L,)."""
    return x_LE.var(1, correction=0) / x_LE.mean(1).square()


def is_distributed() -> bool:
    """Whether this is one of several processes, or could be."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def not_negative(balancer: Balancer, name: str, value: float, for_example: float = 0.01) -> float:
    """The value, or UsageError if it is not a finite number of 0 or more."""
    if not 0 <= value < math.inf:
        raise UsageError(
            f"--model.balancers: {type(balancer).__name__} {name} {value} is not a number of 0 or "
            f"more: give {for_example}, say, or leave the balancer out"
        )
    return value
