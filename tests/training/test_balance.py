"""Balance losses and bias balancing, on bare routers."""

import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from groups import Threads, together
from torch import Tensor

from makemoe.errors import UsageError
from makemoe.group import ALONE, Group
from makemoe.model.backends import Loop
from makemoe.model.dispatch import dispatch
from makemoe.model.experts import MLPExperts
from makemoe.model.moe import MoELayer
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, Router, Routing, TopKRouter
from makemoe.training.balance import (
    Balance,
    BalanceLoss,
    Balancer,
    BiasBalance,
    ImportanceLoss,
    LoadLoss,
    SwitchLoss,
    ZLoss,
)
from makemoe.training.calibration import even_bias
from makemoe.training.counts import count_assignments
from makemoe.training.metrics import max_violation

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


def numpy_chances(routing: Routing) -> np.ndarray:
    """Chance that an expert is chosen if its own noise is drawn again, (N, E), one by one."""
    logits, noisy, scale = (
        t.detach().double().numpy()
        for t in (routing.logits_NE, routing.noisy_NE, routing.noise_scale_NE)
        if t is not None
    )
    chances = np.zeros_like(logits)
    for n, e in np.ndindex(*logits.shape):
        others = sorted(np.delete(noisy[n], e), reverse=True)
        margin = (logits[n, e] - others[routing.experts_NK.shape[1] - 1]) / scale[n, e]
        chances[n, e] = (1 + math.erf(margin / math.sqrt(2))) / 2
    return chances


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_losses_equal_a_recomputation_layer_by_layer(top_k: int) -> None:
    routings = [NoisyTopKRouter(D, E, top_k)(3 * torch.randn(N, D)) for _ in range(2)]
    expected = np.zeros(4)
    for routing in routings:
        experts, weights = routing.experts_NK.numpy(), routing.weights_NK.detach().double().numpy()
        logits = routing.logits_NE.detach().double().numpy()
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        shares = np.array([(experts == e).mean() for e in range(E)])
        importance = np.array([weights[experts == e].sum() for e in range(E)])
        load = numpy_chances(routing).sum(0)
        expected += [
            E * (shares * probs.mean(0)).sum() / 2,
            (importance.std() / importance.mean()) ** 2 / 2,
            (load.std() / load.mean()) ** 2 / 2,
            (np.log(np.exp(logits).sum(1)) ** 2).mean() / 2,
        ]
    values = [raw(kind(), *routings) for kind in LOSSES]
    np.testing.assert_allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_reach_the_gate_and_change_with_the_weight(kind: type[BalanceLoss]) -> None:
    router, x = NoisyTopKRouter(D, E, 2), torch.randn(N, D)
    gradients = []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(1)
        balance = Balance([kind(weight)], [router])
        (gradient,) = torch.autograd.grad(
            balance.weighted(balance.raw_losses([router(x)])), router.gate.weight
        )
        gradients.append(gradient)
    assert gradients[0].abs().max() == 0
    assert gradients[2].abs().max() > 1e-4
    torch.testing.assert_close(gradients[1] * 2, gradients[2])


def test_a_noise_that_has_vanished_gives_finite_gradients() -> None:
    router = NoisyTopKRouter(D, E, 2)
    with torch.no_grad():
        router.noise.bias -= 200
    balance = Balance([LoadLoss(1.0)], [router])
    balance.weighted(balance.raw_losses([router(torch.randn(N, D))])).backward()
    assert all(p.grad.isfinite().all() for p in router.parameters())


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
    (BiasedTopKRouter, BiasBalance(0.01)),
    (lambda *sizes: BiasedTopKRouter(*sizes, score="softmax"), BiasBalance(0.002)),
]


def violation_after_training(router: Router, balancers: list[Balancer]) -> float:
    """MaxVio on new tokens, after steps that train the gate on a task of two experts too."""
    balance = Balance(balancers, [router])
    experts = MLPExperts(E, D, 0.0).requires_grad_(False)
    layer, gate = MoELayer(router, experts), router.gate.weight
    first_two = Routing(torch.tensor([[0.8, 0.2]]), torch.tensor([[0, 1]]), *torch.zeros(2, 1, E))
    before, optimizer = gate.detach().clone(), torch.optim.AdamW(router.parameters(), lr=0.05)
    for _ in range(250):
        x_1ND = torch.randn(1, N, D)
        y_1ND, routing = layer(x_1ND)
        wanted = [t if t is None else t.expand(N, -1) for t in first_two]
        target_ND = dispatch(x_1ND[0], Routing(*wanted), experts, Loop())
        losses = balance.raw_losses([routing])
        loss = 0.1 * (y_1ND[0] - target_ND).square().mean() + balance.weighted(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        balance.end_step()
    assert (gate - before).abs().max() > 0.01
    counts_LE = count_assignments([router.eval()(torch.randn(4000, D))])
    return max_violation(counts_LE / counts_LE.sum()).item()


@pytest.mark.parametrize(("kind", "balancer"), RECOVERIES)
def test_a_collapsed_router_recovers_with_each_scheme_and_not_without(
    kind: Callable[[int, int, int], Router], balancer: Balancer
) -> None:
    assert violation_after_training(collapsed_router(kind), []) > 1.9
    assert violation_after_training(collapsed_router(kind), [balancer]) < 0.3


def test_z_loss_keeps_scores_small() -> None:
    router = collapsed_router(TopKRouter)
    before = raw(ZLoss(), router(torch.randn(N, D)))
    violation_after_training(router, [ZLoss(0.1)])
    assert raw(ZLoss(), router(torch.randn(N, D))) < before / 2


@pytest.mark.parametrize("kind", LOSSES)
def test_processes_with_uneven_shares_average_to_the_gradient_of_the_whole_batch(
    kind: type[BalanceLoss],
) -> None:
    router, x = NoisyTopKRouter(D, E, 2), 2 * torch.randn(N, D)
    whole = router(x)
    parts = [
        Routing(*(t if t is None else t[own] for t in whole)) for own in (slice(40), slice(40, N))
    ]

    def gradient(group: Group, own: Routing) -> tuple[float, Tensor]:
        balance = Balance([kind()], [router])
        balance.join(group)
        loss = balance.raw_losses([own])[kind.__name__]
        return loss.item(), *torch.autograd.grad(loss, router.gate.weight, retain_graph=True)

    value, expected = gradient(ALONE, whole)
    averaged = torch.zeros_like(expected)
    for rank, (of_all, own) in enumerate(together(2, lambda g: gradient(g, parts[g.rank]))):
        assert of_all == pytest.approx(value, rel=1e-5)
        averaged += own * len(parts[rank].logits_NE) / N
    torch.testing.assert_close(averaged, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("balancers", "sums"), [([], 0), ([BiasBalance()], 1), ([BiasBalance(), ZLoss()], 3)]
)
def test_processes_sum_once_a_step_unless_a_loss_needs_every_batch(
    balancers: list[Balancer], sums: int
) -> None:
    def work(group: Threads) -> tuple[list[str], Tensor]:
        router = BiasedTopKRouter(D, 2, 1)
        balance = Balance(copy.deepcopy(balancers), [router])
        balance.join(group)
        for batch in range(3):
            experts_NK = torch.tensor([[0], [0], [1 - group.rank * batch // 2]])
            scores_NE = torch.zeros(3, 2)
            balance.raw_losses([Routing(torch.ones(3, 1), experts_NK, scores_NE, scores_NE)])
        balance.end_step()
        return group.collectives, router.bias_E

    for collectives, bias_E in together(2, work):
        assert collectives == ["sum"] * sums
        assert bias_E.tolist() == pytest.approx([-0.001, 0.001] if balancers else [0, 0])


@pytest.mark.parametrize("balancer", [BiasBalance(), ZLoss()])
@pytest.mark.parametrize("raised", [None, 0, 1])
def test_a_flag_travels_to_all_processes_with_the_sums(
    balancer: Balancer, raised: int | None
) -> None:
    def work(group: Threads) -> tuple[int, float]:
        balance = Balance([copy.deepcopy(balancer)], [BiasedTopKRouter(D, 2, 1)])
        balance.join(group)
        balance.flag = group.rank == raised
        scores_NE = torch.zeros(1, 2)
        balance.raw_losses(
            [Routing(torch.ones(1, 1), torch.zeros(1, 1).long(), scores_NE, scores_NE)]
        )
        balance.end_step()
        assert balance.flags is not None
        return len(group.collectives), balance.flags.item()

    assert together(2, work) == [(1, float(raised is not None))] * 2


def test_without_balancers_no_flag_travels() -> None:
    balance = Balance([], [])
    balance.flag = True
    balance.raw_losses([])
    balance.end_step()
    assert balance.flags is None


def test_a_skipped_step_moves_no_bias_and_is_forgotten() -> None:
    router = BiasedTopKRouter(D, 2, 1)
    balance = Balance([BiasBalance(0.25)], [router])
    scores_NE = torch.zeros(3, 2)
    for experts, stepped, bias in (([0, 0, 1], False, [0, 0]), ([1, 1, 0], True, [0.25, -0.25])):
        experts_NK = torch.tensor(experts)[:, None]
        balance.raw_losses([Routing(torch.ones(3, 1), experts_NK, scores_NE, scores_NE)])
        balance.end_step(stepped)
        assert router.bias_E.tolist() == bias


@pytest.mark.parametrize("kind", LOSSES)
def test_the_last_of_accumulated_batches_has_the_loss_of_the_whole_step(
    kind: type[BalanceLoss],
) -> None:
    router = NoisyTopKRouter(D, E, 2)
    whole = router(2 * torch.randn(N, D))
    thirds = [Routing(*(t if t is None else t[i : i + 40] for t in whole)) for i in (0, 40, 80)]
    balance = Balance([kind()], [router])
    for _ in range(2):  # and the next step begins from nothing
        for third in thirds:
            loss = balance.raw_losses([third])[kind.__name__]
        assert loss.item() == pytest.approx(raw(kind(), whole), rel=1e-5)
        balance.end_step()


def test_a_bias_moves_once_a_step_by_the_sign_of_the_step_s_violation() -> None:
    router = BiasedTopKRouter(D, 4, 2)
    balance = Balance([BiasBalance(0.25)], [router])
    scores_NE = torch.zeros(3, 4)
    for experts in ([[0, 1], [0, 2], [0, 3]], [[0, 2], [0, 3], [3, 0]]):
        chosen_NK = torch.tensor(experts)
        balance.raw_losses([Routing(torch.ones(3, 2) / 2, chosen_NK, scores_NE, scores_NE)])
        assert router.bias_E.tolist() == [0, 0, 0, 0]
    balance.end_step()  # counts 6, 1, 2, 3; mean 3
    assert router.bias_E.tolist() == [-0.25, 0.25, 0.25, 0]
    balance.end_step()
    assert router.bias_E.tolist() == [-0.25, 0.25, 0.25, 0]


@pytest.mark.parametrize("top_k", range(1, E + 1))
def test_an_even_bias_puts_each_expert_among_the_chosen_of_equally_many(top_k: int) -> None:
    skewed_NE = (torch.randn(6000, E) + torch.linspace(-1, 1, E)).softmax(1)
    bias_E = even_bias(skewed_NE, torch.zeros(E), top_k)
    chosen_NK = (skewed_NE + bias_E).numpy().argsort(1)[:, E - top_k :]
    counts_E = np.bincount(chosen_NK.flatten(), minlength=E)
    assert counts_E.sum() == 6000 * top_k
    np.testing.assert_allclose(counts_E, 1000 * top_k, rtol=0.02)


def test_calibration_evens_the_loads_of_evaluation_and_leaves_training_alone() -> None:
    router = BiasedTopKRouter(D, 4, 2, "softmax").eval()
    router.bias_E += torch.tensor([0.2, 0.0, 0.0, -0.2])
    asked = []

    def routings_of(tokens: int) -> Iterator[list[Routing]]:
        asked.append(tokens)
        for part_ND in torch.randn(tokens, D).split(900):
            yield [router(part_ND)]

    def violation() -> float:
        counts_LE = count_assignments([router(torch.randn(8000, D))])
        return max_violation(counts_LE / counts_LE.sum()).item()

    assert violation() > 0.5
    Balance([BiasBalance(calibration_tokens=4000)], [router]).before_evaluation(routings_of)
    assert asked == [4000]
    assert violation() < 0.1
    torch.testing.assert_close(router.bias_E, torch.tensor([0.2, 0.0, 0.0, -0.2]))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_cannot_be_is_refused(kind: type[BalanceLoss], weight: float) -> None:
    with pytest.raises(
        UsageError, match=f"{kind.__name__} weight {weight} must be a finite number of 0"
    ):
        kind(weight)


@pytest.mark.parametrize(
    ("balancers", "router", "words"),
    [
        ([BiasBalance()], TopKRouter(D, E, 2), "TopKRouter has none: .* BiasedTopKRouter"),
        ([LoadLoss()], BiasedTopKRouter(D, E, 2), "has none: .* NoisyTopKRouter"),
        ([LoadLoss()], NoisyTopKRouter(D, E, E), "top_k 6 of 6 experts"),
        ([SwitchLoss(), SwitchLoss(0.1)], TopKRouter(D, E, 2), "a class is given twice"),
    ],
)
def test_balancers_that_do_not_fit_are_refused_with_the_mend(
    balancers: list[Balancer], router: Router, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        Balance(balancers, [router])
