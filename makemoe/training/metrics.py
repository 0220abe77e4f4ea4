"""Metrics: exact losses, and router statistics.

All are torchmetrics: `update` is local, `compute` sums over processes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torchmetrics import Metric

from makemoe.data.windows import IGNORE
from makemoe.devices import place_for
from makemoe.group import ALONE, Group
from makemoe.model.router import Routing
from makemoe.training.counts import sum_by_expert
from makemoe.training.losses import summed_cross_entropy
from makemoe.training.thresholds import DEAD_BELOW

DRIFT_TOKENS = 2048
"""Number of tokens drift is measured on, rounded down to whole windows, at least one."""

WORST_TOO = ("max_vio", "dead")
"""Metrics whose worst layer is logged too, because one bad layer matters."""


class SummingMetric(Metric):
    """A metric whose sums never change dtype.

    A model trained in bfloat16 throughout (`--trainer.precision bf16-true`) converts everything
    in it, and in bfloat16 a count of 257 becomes 256. Sums in float64 stay on the CPU if the model
    moves to a device that has no float64.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        def only_move(state: Tensor) -> Tensor:
            # A probe, because moving float64 itself to a device without it would raise.
            device = fn(torch.empty(0, dtype=torch.float32, device=state.device)).device
            return state.to(place_for(state.dtype, device))

        super()._apply(only_move, *args, **kwargs)
        return self


class TokenLoss(SummingMetric):
    """Mean cross-entropy over all predictions, in nats per token.

    Sums in float64 and divides once, so the batch size and number of processes do not matter.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits_BTV: Tensor, targets_BT: Tensor) -> None:
        """Add a batch; targets marked IGNORE do not count."""
        self.nats += summed_cross_entropy(logits_BTV, targets_BT).to(self.nats.device)
        self.tokens += (targets_BT != IGNORE).sum()

    def compute(self) -> Tensor:
        """Mean loss, float64 scalar."""
        return self.nats / self.tokens.to(self.nats.device)


class RouterStats(SummingMetric):
    """Router metrics: how evenly experts are used, and how confident the router is.

    An assignment is one (token, chosen expert) pair; there are K per token. Counts are exact. Sums
    over tokens are float32, because some devices have no float64, and what rounding loses when a
    batch is added is summed beside them, so that means are accurate to 1e-6 over any number of
    batches.

    Args:
        n_layer: number of routers L.
        num_experts: experts per layer E.
        top_k: experts per token K.
        layers: the numbers of their layers; None: all from 0.
    """

    full_state_update = False
    counts_LE: Tensor
    dropped_L: Tensor
    mass_LE: Tensor
    sums_3L: Tensor
    lost_mass_LE: Tensor
    lost_sums_3L: Tensor

    def __init__(
        self, n_layer: int, num_experts: int, top_k: int, layers: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.top_k, self.layers = top_k, layers
        LE = n_layer, num_experts
        self.add_state("counts_LE", torch.zeros(LE, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("dropped_L", torch.zeros(n_layer, dtype=torch.int64), dist_reduce_fx="sum")
        for prefix in ("", "lost_"):
            for name, shape in {"mass_LE": LE, "sums_3L": (3, n_layer)}.items():
                zeros = torch.zeros(shape, dtype=torch.float32)
                self.add_state(f"{prefix}{name}", zeros, dist_reduce_fx="sum")

    def update(
        self,
        routings: Sequence[Routing],
        counted_N: Tensor | None = None,
        counts_LE: Tensor | None = None,
    ) -> None:
        """Add a batch's routings, one per router.

        Args:
            routings: routings of N tokens each.
            counted_N: which tokens count; None: all.
            counts_LE: the assignments of the tokens that count; None: they are counted here.
        """
        if not routings:
            return
        # Few operations, each over all layers; none waits for the device.
        experts_LNK = torch.stack([routing.experts_NK for routing in routings])
        weights_LNK = torch.stack([routing.weights_NK for routing in routings]).float()
        probs_LNE = torch.stack([routing.probs_NE for routing in routings])
        logits_LNE = torch.stack([routing.logits_NE for routing in routings])
        # Not xlogy: it is not vectorised and would take a third of the time here on a CPU.
        log_LNE = probs_LNE.clamp_min(torch.finfo(probs_LNE.dtype).tiny).log()
        entropy_LN = -(probs_LNE * log_LNE).sum(-1)
        of_tokens_3LN = torch.stack([entropy_LN, weights_LNK[..., 0], logits_LNE.logsumexp(-1)])
        one_LNK = torch.ones_like(experts_LNK)
        if counted_N is not None:
            of_tokens_3LN = of_tokens_3LN * counted_N
            one_LNK, weights_LNK = one_LNK * counted_N[:, None], weights_LNK * counted_N[:, None]
        if routings[0].dropped_NK is not None:
            dropped_LNK = torch.stack([r.dropped_NK for r in routings if r.dropped_NK is not None])
            self.dropped_L += (one_LNK * dropped_LNK).sum((1, 2))
            weights_LNK = weights_LNK.masked_fill(dropped_LNK, 0)
        E = self.counts_LE.shape[1]
        self.counts_LE += sum_by_expert(experts_LNK, one_LNK, E) if counts_LE is None else counts_LE
        add_(self.mass_LE, self.lost_mass_LE, sum_by_expert(experts_LNK, weights_LNK, E))
        add_(self.sums_3L, self.lost_sums_3L, of_tokens_3LN.sum(-1))

    def figures(self) -> dict[str, Tensor]:
        """All metrics per router, over the tokens this process has seen; none without routers.

        With N tokens, load f_e, and probabilities p_n of token n before top-k:

        - load (L, E): f_e = assignments to e / (N K), including dropped ones: what the router chose
          (arXiv:2101.03961, equation 5, where K is 1).
        - mass (L, E): e's share of all combine weights, without dropped ones (the
          importance of arXiv:1701.06538, equation 6, as a share).
        - max_vio, load_cv, dead, load_entropy (L,): see the functions of `load` below.
        - dropped (L,): dropped assignments / (N K) (arXiv:2101.03961, section 2.2).
        - token_entropy (L,): mean over tokens of -sum_e p_ne ln p_ne, over ln E (Shannon 1948): 0
          is a confident router, 1 one that does not distinguish experts.
        - first_weight (L,): mean combine weight of a token's first choice.
        - logsumexp (L,): mean over tokens of ln sum_e exp(logit_ne), nats; the z-loss keeps its
          square small (arXiv:2202.08906, equation 5).
        """
        if not len(self.counts_LE):
            return {}
        # In float32 even where the default is bfloat16, as in a step under bf16-true.
        assignments_L = self.counts_LE.sum(-1).float()
        load_LE = self.counts_LE.float() / assignments_L[:, None]
        mass_LE = self.mass_LE + self.lost_mass_LE
        sums_3L = self.sums_3L + self.lost_sums_3L
        entropy_L, first_weight_L, logsumexp_L = sums_3L * self.top_k / assignments_L
        return {
            "load": load_LE,
            "mass": mass_LE / mass_LE.sum(-1, keepdim=True),
            "max_vio": max_violation(load_LE),
            "load_cv": coefficient_of_variation(load_LE),
            "dead": dead_share(load_LE),
            "dropped": self.dropped_L / assignments_L,
            "load_entropy": load_entropy(load_LE),
            "token_entropy": over_log(entropy_L, load_LE.shape[-1]),
            "first_weight": first_weight_L,
            "logsumexp": logsumexp_L,
        }

    def compute(self) -> dict[str, Tensor]:
        """The metrics over all processes, by the names they are logged under."""
        return by_name(self.figures(), self.layers)


class RouterDrift(SummingMetric):
    """Share of tokens whose experts differ from those at the last validation, per layer.

    Experts are compared as a set (routing fluctuation, arXiv:2204.08396, section 2.2, where it is
    measured from step to step). The tokens are those of the first windows of the text, so they are
    the same at every validation and for any number of processes, to which windows are assigned in
    turn.

    Args:
        n_layer: number of routers L.
        top_k: experts per token K.
        block_size: window length T.
        layers: the numbers of their layers; None: all from 0.
    """

    full_state_update = False
    now_LBTK: Tensor
    before_LBTK: Tensor

    def __init__(
        self, n_layer: int, top_k: int, block_size: int, layers: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.block_size, self.windows_seen, self.layers = block_size, 0, layers
        windows = max(1, DRIFT_TOKENS // block_size)
        # A token's experts in ascending order, counted from 1; 0 means not seen by this process, so
        # that the maximum over processes is what any of them has seen.
        nothing = torch.zeros(n_layer, windows, block_size, top_k, dtype=torch.int32)
        self.add_state("now_LBTK", nothing, dist_reduce_fx="max")
        self.add_state("before_LBTK", nothing.clone(), dist_reduce_fx="max")

    def update(self, routings: Sequence[Routing], counted_N: Tensor, group: Group = ALONE) -> None:
        """Add the next batch of this process's share of the text, as `EvaluationBatches` gives it.

        Args:
            routings: routings of N tokens each, one per router.
            counted_N: which tokens count.
            group: the processes that share the text.
        """
        begin = self.windows_seen
        self.windows_seen += len(counted_N) // self.block_size
        slots_LBTK = self.now_LBTK[:, group.rank :: group.size][:, begin : self.windows_seen]
        if slots_LBTK.numel() == 0:
            return
        N = slots_LBTK.shape[1] * self.block_size
        experts_LNK = torch.stack([routing.experts_NK[:N] for routing in routings])
        numbers_LNK = (experts_LNK.sort(-1).values + 1) * counted_N[:N, None]
        slots_LBTK.copy_(numbers_LNK.view_as(slots_LBTK))

    def compute(self) -> dict[str, Tensor]:
        """Drift by the names it is logged under; empty at the first validation."""
        seen_LBT = ((self.now_LBTK > 0) & (self.before_LBTK > 0)).all(-1)
        if not seen_LBT.any():
            return {}
        changed_LBT = (self.now_LBTK != self.before_LBTK).any(-1) & seen_LBT
        changed_L, seen_L = changed_LBT.sum((1, 2)).float(), seen_LBT.sum((1, 2)).float()
        return by_name({"drift": changed_L / seen_L}, self.layers)

    def reset(self) -> None:
        """Start a new validation: the current experts become the previous ones."""
        self._begin(after_LBTK=self.now_LBTK)

    def discard(self) -> None:
        """Forget what was seen of a validation that has not ended."""
        self._begin(after_LBTK=self.before_LBTK)

    def _begin(self, after_LBTK: Tensor) -> None:
        """Start a validation that is compared with these experts."""
        super().reset()
        self.before_LBTK, self.windows_seen = after_LBTK, 0


def add_(total: Tensor, lost: Tensor, more: Tensor) -> None:
    """Add to a total, and to `lost` exactly what rounding takes from it.

    The two-sum of Knuth (The Art of Computer Programming, volume 2, section 4.2.2, theorem B).
    """
    before = total.clone()
    total += more
    added = total - before
    lost += (before - (total - added)) + (more - added)


def max_violation(load_LE: Tensor) -> Tensor:
    """MaxVio of each layer, (L,): max(load) / mean(load) - 1 (arXiv:2408.15664, equation 4).

    0 is perfect balance; E / K - 1 is the maximum: every token goes to the same K experts.
    """
    return load_LE.amax(-1) / load_LE.mean(-1) - 1


def coefficient_of_variation(load_LE: Tensor) -> Tensor:
    """CV of each layer's loads, (L,): std(load) / mean(load), with the population std over all E.

    arXiv:1701.06538, equation 11, uses its square as a loss. 0 is perfect balance;
    sqrt(E / K - 1) is the maximum.
    """
    return load_LE.std(-1, correction=0) / load_LE.mean(-1)


def dead_share(load_LE: Tensor) -> Tensor:
    """Share of dead experts of each layer, (L,): mean over e of [load_e < DEAD_BELOW * 1/E].

    The mean load is 1/E. This is our definition: whether a load is exactly zero would depend on the
    number of tokens.
    """
    return (load_LE * load_LE.shape[-1] < DEAD_BELOW).float().mean(-1)


def load_entropy(load_LE: Tensor) -> Tensor:
    """Entropy of each layer's loads, (L,): -sum_e load_e ln load_e, over ln E (Shannon 1948).

    1 is perfect balance; ln K / ln E is the minimum.
    """
    return over_log(-torch.xlogy(load_LE, load_LE).sum(-1), load_LE.shape[-1])


def over_log(entropy_L: Tensor, num_experts: int) -> Tensor:
    """Entropies divided by their maximum, ln E; 1 if there is only one expert."""
    return entropy_L / math.log(num_experts) if num_experts > 1 else torch.ones_like(entropy_L)


def by_name(
    figures: Mapping[str, Tensor], layers: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Metrics per router, (L,), and per expert, (L, E), as named scalars.

    `layer_3/load_0` belongs to an expert, `layer_3/max_vio` to a layer; `max_vio` is the mean over
    layers with a router and `worst_max_vio` their maximum.

    Args:
        figures: the metrics.
        layers: the numbers of the routers' layers; None: all from 0.
    """
    named = {}
    for name, figure in figures.items():
        numbers = range(len(figure)) if layers is None else layers
        if figure.ndim == 2:
            for layer, figure_E in zip(numbers, figure, strict=True):
                for expert, of_expert in enumerate(figure_E.unbind()):
                    named[f"layer_{layer}/{name}_{expert}"] = of_expert
        else:
            for layer, of_layer in zip(numbers, figure.unbind(), strict=True):
                named[f"layer_{layer}/{name}"] = of_layer
            named[name] = figure.mean()
            if name in WORST_TOO:
                named[f"worst_{name}"] = figure.max()
    return named


def completed(states: Any, own: Sequence[Mapping[str, Any]]) -> Any:
    """States of metrics from a checkpoint, with zeros for the `lost_...` that older ones lack."""
    if not isinstance(states, list) or not all(isinstance(state, dict) for state in states):
        return states
    lost = [{k: torch.zeros_like(v) for k, v in s.items() if k.startswith("lost_")} for s in own]
    return [before | state for before, state in zip(lost, states, strict=False)]


def summed_state(metric: Metric) -> dict[str, Tensor]:
    """A metric's state summed over all processes, from which one process can continue."""
    with metric.sync_context():
        return {name: getattr(metric, name) for name in metric.metric_state}
