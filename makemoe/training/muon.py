"""Muon: momentum whose matrices are orthogonalised, with AdamW for every other weight."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from makemoe.errors import UsageError
from makemoe.training.param_groups import ParamGroups, Weight

Method = Literal["muon", "adamw"]

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the polynomial a x + b x^3 + c x^5 that moves singular values towards 1."""


class MuonMatrices(ParamGroups):
    """For the optimizer `Muon`: matrices by Muon; embeddings, output layer, gates and the rest by AdamW."""

    def divide(self, weights: Sequence[Weight]) -> list[dict[str, Any]]:
        by_muon = [weight.parameter for weight in weights if is_hidden_matrix(weight)]
        others = [weight.parameter for weight in weights if not is_hidden_matrix(weight)]
        return [{"params": by_muon, "method": "muon"}, {"params": others, "method": "adamw"}]


def is_hidden_matrix(weight: Weight) -> bool:
    """Whether a weight is a matrix between two layers of the residual stream."""
    return weight.is_matrix and weight.name != "head.weight" and "gate." not in weight.name


class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024), AdamW for the other groups."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        adamw_lr: float = 3e-3,
        adamw_weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        method: Method = "muon",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "betas": betas,
            "eps": eps,
            "method": method,
        }
        groups = [g if isinstance(g, dict) else {"params": [g]} for g in list(params)]
        for group in groups:
            if group.get("method", method) == "adamw":
                group.setdefault("lr", adamw_lr)
                group.setdefault("weight_decay", adamw_weight_decay)
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            if group["method"] == "adamw":
                self.step_adamw(group, with_grad)
            else:
                self.step_muon(group, with_grad)
        return loss

    def step_adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not (state := self.state[p]):
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [p.grad for p in params],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def step_muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        shapes: dict[tuple[int, int], list[Tensor]] = {}
        for p in params:
            shapes.setdefault((p.shape[-2], p.shape[-1]), []).append(p)
        for same in shapes.values():
            updates = []
            for p in same:
                if not (state := self.state[p]):
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(momentum, group["momentum"]).view(-1, *p.shape[-2:]))
            sizes = [len(u) for u in updates]
            turned = orthogonalised(torch.cat(updates), group["ns_steps"])
            rows, columns = same[0].shape[-2:]
            # sqrt(0.2 max) matches the size of AdamW's updates (arXiv:2502.16982, equation 4).
            scale = 0.2 * math.sqrt(max(rows, columns))
            for p, u in zip(same, turned.split(sizes), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(u.view_as(p), alpha=-group["lr"] * scale)


def orthogonalised(x_MRC: Tensor, steps: int) -> Tensor:
    """M matrices with singular values near 1 and the singular vectors of x."""
    a, b, c = COEFFICIENTS
    wide = x_MRC.shape[-1] >= x_MRC.shape[-2]
    x = x_MRC if wide else x_MRC.mT
    x = x / x.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x if wide else x.mT
