"""Balancers keep the expert load even. They are chosen and combined in `model.balancers`.

A balancer is a subclass of `BalanceLoss`, or of `Balancer`, named in YAML by its class path:

    model:
      balancers:
        - {class_path: makemoe.training.balance.SwitchLoss, init_args: {weight: 0.01}}
        - {class_path: makemoe.training.balance.ZLoss}

They see the whole optimizer step. A loss is a function of token means over all processes and all
micro-batches; its gradient goes through this process's tokens. Averaged over processes, that is
exactly the gradient of the loss of the global batch, even for losses that are not means over
tokens. Within an accumulated step the means are running means. They are exact only at the last
micro-batch, because gradients of the first are needed before the last is seen (arXiv:2501.11873).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from makemoe.errors import UsageError
from makemoe.group import ALONE, Group
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, Router, Routing
from makemoe.training.calibration import even_bias, kth_of_others
from makemoe.training.counts import count_assignments

LEAST_NOISE = 1e-6
"""Lower limit of the noise scale, which would otherwise make a gradient infinite."""


RoutingsOf = Callable[[int], Iterable[Sequence[Routing]]]


class Balancer(ABC):
    """Base class of balancers; it does nothing itself."""

    @property
    def calibrates(self) -> bool:
        """Whether it sets `eval_shift_E` of biased routers before evaluations."""
        return False

    def check(self, routers: Sequence[Router]) -> None:
        """Raise UsageError if this balancer does not work with these routers."""
        return

    def after_step(self, routers: Sequence[Router], counts_LE: Tensor) -> None:
        """Act after each optimizer step.

        Args:
            routers: one per layer that has a router.
            counts_LE: assignments per expert in this step, over all processes and micro-batches.
        """
        return

    def before_evaluation(
        self, routers: Sequence[Router], routings_of: RoutingsOf, group: Group
    ) -> None:
        """Act before each evaluation during training.

        Args:
            routers: one per layer that has a router.
            routings_of: returns the routings, in evaluation mode, of the given number of tokens of
                the training text, batch by batch.
            group: the processes that share a batch.
        """
        return

    @abstractmethod
    def setting(self) -> dict[str, float]:
        """Its strength, as a dictionary from the name it is logged under."""


class BalanceLoss(Balancer):
    """Base class of losses that are added to the cross-entropy in training, never in evaluation.

    Args:
        weight: factor of the loss; UsageError if it is negative or not finite.
    """

    def __init__(self, weight: float) -> None:
        self.weight = not_negative(self, "weight", weight)

    def setting(self) -> dict[str, float]:
        return {"weight": self.weight}

    @abstractmethod
    def measure(self, routing: Routing) -> Tensor:
        """The statistic the loss depends on: a mean over N tokens, any length S, float32."""

    @abstractmethod
    def loss(self, mean_LS: Tensor, load_LE: Tensor) -> Tensor:
        """The loss of each layer, (L,).

        Args:
            mean_LS: mean of `measure` over all tokens of the step so far.
            load_LE: shares of the step's assignments so far, rows adding up to 1.
        """


class SwitchLoss(BalanceLoss):
    """E * sum_e f_e * P_e, load shares times mean probabilities (arXiv:2101.03961, equation 4).

    f is the share of all N*K assignments and P the mean of the full distribution, so that perfect
    balance is 1.0 for every K, and E / K is the worst. Dropped assignments count, because the
    router chose them.
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
    weights that tokens gave it. 0 is perfect balance; E - 1 is the worst.
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
    probability, if its own noise were drawn again, that it is among the K chosen; unlike a count,
    this has a gradient. Needs a router with noise.
    """

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def check(self, routers: Sequence[Router]) -> None:
        for router in routers:
            if not isinstance(router, NoisyTopKRouter):
                raise UsageError(
                    "LoadLoss estimates loads from the router's noise, and "
                    f"{type(router).__name__} has none: use --model.router NoisyTopKRouter or "
                    "another balancer"
                )
            if router.top_k == router.num_experts:
                raise UsageError(
                    f"LoadLoss with top_k {router.top_k} of {router.num_experts} experts: every "
                    "load is already even; remove it"
                )

    def measure(self, routing: Routing) -> Tensor:
        noisy_NE, scale_NE = routing.noisy_NE, routing.noise_scale_NE
        assert noisy_NE is not None
        assert scale_NE is not None
        K = routing.experts_NK.shape[1]
        # An expert is chosen if its score is above the K-th best of the others.
        margin_NE = routing.logits_NE - kth_of_others(noisy_NE, K)
        margin_NE = margin_NE / scale_NE.clamp_min(LEAST_NOISE)
        chance_NE: Tensor = torch.special.ndtr(margin_NE)
        return chance_NE.mean(0)

    def loss(self, mean_LS: Tensor, load_LE: Tensor) -> Tensor:
        return squared_variation(mean_LS)


class ZLoss(BalanceLoss):
    """Mean over tokens of logsumexp(logits)^2, which keeps the gate's scores small.

    ST-MoE (arXiv:2202.08906, equation 5), where the weight is 0.001. It stabilises the router; it
    does not balance the load itself.
    """

    def __init__(self, weight: float = 0.001) -> None:
        super().__init__(weight)

    def measure(self, routing: Routing) -> Tensor:
        return routing.logits_NE.logsumexp(1).square().mean(0, keepdim=True)

    def loss(self, mean_LS: Tensor, load_LE: Tensor) -> Tensor:
        return mean_LS[:, 0]


class BiasBalance(Balancer):
    """Moves each expert's bias by a fixed step against its load; adds no loss.

    arXiv:2408.15664, algorithm 1: b_e += rate * sign(mean count - count_e), once per optimizer
    step. Needs a router with a bias.

    This balances the loads in training, averaged over many steps. In evaluation, without dropout
    and with the weights of one step, they are off by some percent. `calibration_tokens` balances
    them too: before each validation, this many tokens of the training text are routed as in
    evaluation, and `even_bias` computes a shift that evaluation adds to the biases. Training is not
    affected. It costs every process somewhat more time than validating on that many tokens, and the
    memory for their logits in all layers.

    Args:
        update_rate: step size, in units of the scores, which lie between 0 and 1.
        calibration_tokens: number of tokens to calibrate on, the same ones at every validation,
            rounded up to whole windows; 0: no calibration.

    Raises:
        UsageError: if either is negative or not finite.
    """

    def __init__(self, update_rate: float = 0.001, calibration_tokens: int = 0) -> None:
        self.update_rate = not_negative(self, "update_rate", update_rate)
        self.calibration_tokens = int(
            not_negative(self, "calibration_tokens", calibration_tokens, 65536)
        )

    @property
    def calibrates(self) -> bool:
        return self.calibration_tokens > 0

    def setting(self) -> dict[str, float]:
        return {"update_rate": self.update_rate}

    def check(self, routers: Sequence[Router]) -> None:
        for router in routers:
            if not isinstance(router, BiasedTopKRouter):
                raise UsageError(
                    f"BiasBalance moves the router's bias, and {type(router).__name__} has none: "
                    "use --model.router BiasedTopKRouter or another balancer"
                )

    def after_step(self, routers: Sequence[Router], counts_LE: Tensor) -> None:
        steps_LE = self.update_rate * (counts_LE.mean(1, keepdim=True) - counts_LE).sign()
        for router, steps_E in zip(routers, steps_LE, strict=True):
            assert isinstance(router, BiasedTopKRouter)
            router.bias_E += steps_E

    def before_evaluation(
        self, routers: Sequence[Router], routings_of: RoutingsOf, group: Group
    ) -> None:
        if not self.calibrates:
            return
        batches = [
            torch.stack([routing.logits_NE for routing in routings])
            for routings in routings_of(self.calibration_tokens)
        ]
        for router, logits_NE in zip(routers, torch.cat(batches, 1), strict=True):
            assert isinstance(router, BiasedTopKRouter)
            bias_E = even_bias(router.scores(logits_NE), router.used_bias_E, router.top_k)
            shift_E = bias_E - router.bias_E
            # All processes used the same tokens, but on a GPU rounding may differ.
            group.broadcast_(shift_E)
            router.eval_shift_E.copy_(shift_E - shift_E.mean())


class Balance:
    """The balancers of a run, and the counts of the current step.

    There is one all-reduce per micro-batch if there are losses, otherwise one per step. Nothing
    waits for the device.

    Args:
        balancers: instances of different classes.
        routers: one per layer that has a router.

    Raises:
        UsageError: if a balancer does not work with the routers, or a class is given twice.
    """

    def __init__(self, balancers: Sequence[Balancer], routers: Sequence[Router]) -> None:
        self.balancers = {type(balancer).__name__: balancer for balancer in balancers}
        self.losses = {k: b for k, b in self.balancers.items() if isinstance(b, BalanceLoss)}
        self.routers = routers
        if len(self.balancers) < len(balancers):
            raise UsageError(
                "--model.balancers: a class is given twice; give each once, with one weight"
            )
        if balancers and not routers:
            raise UsageError(
                "--model.balancers: no layer has a router to balance: remove the balancers, or "
                "layers from --model.dense_layers"
            )
        for balancer in balancers:
            balancer.check(routers)
        self.group: Group = ALONE
        self.sums: Tensor | None = None
        """Counts, measures summed over tokens, and the flag, of the step so far.

        They are those of all processes if there are losses, which need them; otherwise this
        process's own.
        """
        self.flag = False
        """Travels with the sums: another thing that processes agree on, without a collective."""
        self.flags: Tensor | None = None
        """Above 0 if a process's flag was up in the step before; None if nothing was summed."""

    def join(self, group: Group) -> None:
        """Count over these processes from now on, from 0."""
        self.group, self.sums, self.flags = group, None, None

    def begin_fit(self) -> None:
        """Undo the shift of a balancer that was taken away or no longer calibrates."""
        if any(balancer.calibrates for balancer in self.balancers.values()):
            return
        for router in self.routers:
            if isinstance(router, BiasedTopKRouter):
                router.eval_shift_E.zero_()

    def raw_losses(
        self, routings: Sequence[Routing], counts_LE: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Add a micro-batch to the step; return the unweighted loss of each balancer that has one.

        Each is the mean over layers, a float32 scalar of the step so far. Its gradient goes through
        this micro-batch, and must be averaged over processes, weighted by their numbers of tokens.

        Args:
            routings: this process's routings, one per layer.
            counts_LE: their assignments per expert; None: they are counted here.
        """
        if not self.balancers:
            return {}
        N, top_k = routings[0].experts_NK.shape
        counts_LE = (count_assignments(routings) if counts_LE is None else counts_LE).float()
        own = [torch.stack([b.measure(r) for r in routings]) for b in self.losses.values()]
        parts = [counts_LE, *(mean_LS.detach() * N for mean_LS in own)]
        parts.append(counts_LE.new_full((1,), self.flag))
        sums = torch.cat([part.flatten() for part in parts])
        if self.losses:
            self.group.sum_(sums)
        self.sums = sums if self.sums is None else self.sums + sums
        counts, *measured, _ = torch.split(self.sums, [part.numel() for part in parts])
        counts_LE = counts.view_as(counts_LE)
        load_LE = counts_LE / counts_LE.sum(1, keepdim=True)
        tokens = counts_LE[0].sum() / top_k
        losses = {}
        for (name, balancer), own_LS, total in zip(self.losses.items(), own, measured, strict=True):
            # The value is that of all tokens, the gradient that of this micro-batch.
            mean_LS = (total / tokens).view_as(own_LS) + (own_LS - own_LS.detach())
            losses[name] = balancer.loss(mean_LS, load_LE).mean()
        return losses

    def weighted(self, losses: dict[str, Tensor]) -> Tensor | float:
        """The weighted sum of the losses."""
        return sum(self.losses[name].weight * loss for name, loss in losses.items())

    def end_step(self, stepped: bool = True) -> None:
        """Call the balancers after an optimizer step, and reset the counts.

        Args:
            stepped: whether the weights changed. A gradient scaler skips the steps whose gradients
                overflowed; the balancers skip them too.
        """
        sums, self.sums, self.flags = self.sums, None, None
        if sums is None or not stepped:
            return
        if not self.losses:
            self.group.sum_(sums)
        self.flags = sums[-1]
        L, E = len(self.routers), self.routers[0].num_experts
        counts_LE = sums[: L * E].view(L, E)
        for balancer in self.balancers.values():
            balancer.after_step(self.routers, counts_LE)

    def before_evaluation(self, routings_of: RoutingsOf) -> None:
        """Call the balancers before an evaluation during training."""
        for balancer in self.balancers.values():
            balancer.before_evaluation(self.routers, routings_of, self.group)

    def figures(self, losses: dict[str, Tensor]) -> dict[str, Tensor | float]:
        """Raw losses and the strength of every balancer, by the names they are logged under."""
        figures: dict[str, Tensor | float] = {k: loss.detach() for k, loss in losses.items()}
        for name, balancer in self.balancers.items():
            figures |= {f"{name}_{what}": value for what, value in balancer.setting().items()}
        return figures


def squared_variation(x_LE: Tensor) -> Tensor:
    """The squared coefficient of variation of each row, variance / mean^2, (L,)."""
    return x_LE.var(1, correction=0) / x_LE.mean(1).square()


def not_negative(balancer: Balancer, name: str, value: float, for_example: float = 0.01) -> float:
    """Return the value; raise UsageError unless it is finite and at least 0."""
    if not 0 <= value < math.inf:
        raise UsageError(
            f"--model.balancers: {type(balancer).__name__} {name} {value} must be a finite "
            f"number of 0 or more: use {for_example}, for example, or remove the balancer"
        )
    return value
