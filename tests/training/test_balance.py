"""Balance losses and bias balancing, on bare routers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, Router, Routing, TopKRouter
from makemoe.training.balance import (
    Balance,
    Balancer,
    BiasBalance,
    ImportanceLoss,
    LoadLoss,
    SwitchLoss,
    ZLoss,
)
from makemoe.training.metrics import count_assignments, max_violation

D, E, N = 8, 6, 120
LOSSES = [SwitchLoss, ImportanceLoss, LoadLoss, ZLoss]


def even_routing(top_k: int, num_experts: int = E) -> Routing:
    """N tokens, of which every expert gets the same number, with the same weights."""
    experts_NK = (torch.arange(N)[:, None] + torch.arange(top_k)) % num_experts
    weights_NK = torch.full((N, top_k), 1 / top_k)
    logits_NE = torch.zeros(N, num_experts)
    return Routing(weights_NK, experts_NK, logits_NE, logits_NE.softmax(1))


def raw(balancer: Balancer, *routings: Routing) -> float:
    routers = [NoisyTopKRouter(D, E, routings[0].experts_NK.shape[1]) for _ in routings]
    return Balance([balancer], routers).raw_losses(routings)[type(balancer).__name__].item()


@pytest.mark.parametrize("top_k", range(1, E + 1))
def test_switch_loss_is_one_at_perfect_balance_for_every_k(top_k: int) -> None:
    assert raw(SwitchLoss(), even_routing(top_k)) == pytest.approx(1.0)


@pytest.mark.parametrize("top_k", range(1, E + 1))
def test_switch_loss_of_a_collapsed_router_is_e_over_k(top_k: int) -> None:
    experts_NK = torch.arange(top_k).expand(N, -1)
    probs_NE = torch.zeros(N, E)
    probs_NE[:, :top_k] = 1 / top_k
    collapsed = even_routing(top_k)._replace(experts_NK=experts_NK, probs_NE=probs_NE)
    assert raw(SwitchLoss(), collapsed) == pytest.approx(E / top_k)


def collapsed_router(kind: Callable[[int, int, int], Router]) -> Router:
    """A router whose every token goes to the same two experts."""
    torch.manual_seed(0)
    router = kind(D, E, 2)
    with torch.no_grad():
        router.gate.bias[:2] += 3
        if isinstance(router, NoisyTopKRouter):
            router.noise.bias -= 1
    return router


RECOVERIES = [
    (TopKRouter, SwitchLoss(0.1)),
    (NoisyTopKRouter, ImportanceLoss(0.1)),
    (NoisyTopKRouter, LoadLoss(0.1)),
    (BiasedTopKRouter, BiasBalance(0.002)),
    (lambda *sizes: BiasedTopKRouter(*sizes, score="softmax"), BiasBalance(0.002)),
]


def violation_after_training(router: Router, balancers: list[Balancer]) -> float:
    """MaxVio on new tokens, after steps in which the task asks nothing of the router."""
    balance = Balance(balancers, [router])
    optimizer = torch.optim.AdamW(router.parameters(), lr=0.05)
    for _ in range(250):
        losses = balance.raw_losses([router(torch.randn(N, D))])
        loss = balance.weighted(losses)
        if isinstance(loss, Tensor):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        balance.end_step()
    counts_LE = count_assignments([router.eval()(torch.randn(4000, D))])
    return max_violation(counts_LE / counts_LE.sum()).item()


@pytest.mark.parametrize(("kind", "balancer"), RECOVERIES)
def test_a_collapsed_router_recovers_with_each_scheme_and_not_without(
    kind: Callable[[int, int, int], Router], balancer: Balancer
) -> None:
    assert violation_after_training(collapsed_router(kind), []) > 1.9
    assert violation_after_training(collapsed_router(kind), [balancer]) < 0.3
