from functools import partial
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch.nn import functional as F

from makemoe.errors import UsageError
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, TopKRouter

D, E, N = 8, 6, 50
# Before its bias moves, a router with softmax scores is plain top-k.
ROUTERS: list[Any] = [TopKRouter, NoisyTopKRouter, partial(BiasedTopKRouter, score="softmax")]


@pytest.mark.parametrize("top_k", range(1, E + 1))
@pytest.mark.parametrize("kind", ROUTERS)
def test_equals_the_oracle_in_evaluation(kind: type[TopKRouter], top_k: int) -> None:
    router, x = kind(D, E, top_k).eval(), torch.randn(N, D)
    torch.testing.assert_close(router(x), oracle.route(x, router))


@pytest.mark.parametrize("top_k", [2, 3, E])
@pytest.mark.parametrize("kind", ROUTERS)
def test_weights_sum_to_one_and_experts_are_distinct(kind: type[TopKRouter], top_k: int) -> None:
    routing = kind(D, E, top_k)(torch.randn(N, D))
    torch.testing.assert_close(routing.weights_NK.sum(1), torch.ones(N))
    assert (routing.weights_NK.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == top_k for row in routing.experts_NK.tolist())
    assert routing.experts_NK.dtype == torch.int64


@pytest.mark.parametrize("kind", ROUTERS)
def test_one_expert_per_token_is_weighted_by_its_probability_among_all(
    kind: type[TopKRouter],
) -> None:
    router, x = kind(D, E, 1).eval(), torch.randn(N, D)
    routing = router(x)
    torch.testing.assert_close(routing.weights_NK[:, 0], routing.probs_NE.amax(1))
    assert (routing.weights_NK < 0.9).all()
    for train in (True, False):
        router.train(train).zero_grad()
        router(x).weights_NK.sum().backward()
        assert router.gate.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ROUTERS)
def test_stays_in_float32_under_autocast(kind: type[TopKRouter]) -> None:
    router, x = kind(D, E, 2).eval(), torch.randn(N, D)
    with torch.autocast("cpu", torch.bfloat16):
        routing, rounded = router(x), router(x.bfloat16())
    torch.testing.assert_close(routing, router(x), rtol=0, atol=0)
    torch.testing.assert_close(rounded, router(x.bfloat16().float()), rtol=0, atol=0)
    router.train()
    with torch.autocast("cpu", torch.bfloat16):
        assert {t.dtype for t in (*router(x)[:1], *router(x)[2:4])} == {torch.float32}


def test_stays_in_float32_with_weights_in_bfloat16() -> None:
    router, x = TopKRouter(D, E, 2).bfloat16(), torch.randn(N, D).bfloat16()
    expected = F.linear(x.float(), router.gate.weight.float(), router.gate.bias.float())
    torch.testing.assert_close(router(x).logits_NE, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [*ROUTERS, BiasedTopKRouter])
def test_a_router_in_float64_rounds_nothing_to_float32(kind: type[TopKRouter]) -> None:
    router, x = kind(D, E, 2).double(), torch.randn(N, D, dtype=torch.float64)
    routing = router(x)
    torch.testing.assert_close(routing.logits_NE, F.linear(x, *router.gate.parameters()))
    kept = [t for t in routing if t is not None and t.is_floating_point()]
    assert {t.dtype for t in kept} == {torch.float64}


def test_evaluation_adds_no_noise_and_draws_no_random_number() -> None:
    router, x = NoisyTopKRouter(D, E, 2).eval(), torch.randn(N, D)
    plain = TopKRouter(D, E, 2)
    plain.gate = router.gate
    before = torch.get_rng_state()
    torch.testing.assert_close(router(x), plain(x), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_in_training_is_normal_with_softplus_scales() -> None:
    draws = 40_000
    router, x = NoisyTopKRouter(D, 3, 3), torch.randn(D)
    with torch.no_grad():
        router.noise.bias += torch.tensor([-1.0, 0.0, 2.0])
        routing = router(x.expand(draws, D))
        logits = router.gate(x).double().numpy()
        scale = np.log1p(np.exp(router.noise(x).double().numpy()))
    np.testing.assert_allclose(routing.logits_NE[0].numpy(), logits, rtol=1e-5)
    # With K = E, log weights are the noisy scores up to a constant of the token.
    scores = torch.zeros(draws, 3).scatter(1, routing.experts_NK, routing.weights_NK.log()).numpy()
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        difference, std = scores[:, i] - scores[:, j], np.hypot(scale[i], scale[j])
        assert difference.mean() == pytest.approx(logits[i] - logits[j], abs=4 * std / draws**0.5)
        assert difference.std() == pytest.approx(std, rel=0.02)
        within = (abs(difference - logits[i] + logits[j]) < std).mean()
        assert within == pytest.approx(0.6827, abs=0.01)


def test_noise_chooses_experts_and_its_scale_learns() -> None:
    router, x = NoisyTopKRouter(D, E, 2), torch.randn(N, D)
    assert not torch.equal(router(x).experts_NK, router(x).experts_NK)
    router(x).weights_NK[:, 0].sum().backward()
    assert router.noise.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("top_k", [0, -1, 7])
def test_top_k_must_lie_between_one_and_the_number_of_experts(
    kind: type[TopKRouter], top_k: int
) -> None:
    with pytest.raises(UsageError, match=f"top_k {top_k} must be between 1 and num_experts 6"):
        kind(D, 6, top_k)


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(UsageError, match="score 'tanh': use sigmoid or softmax"):
        BiasedTopKRouter(D, E, 2, score="tanh")  # type: ignore[arg-type]


def numpy_scores(router: BiasedTopKRouter, x_ND: torch.Tensor, score: str) -> np.ndarray:
    """Unbiased scores in float64."""
    weight, bias = (p.detach().double().numpy() for p in router.gate.parameters())
    logits = x_ND.double().numpy() @ weight.T + bias
    if score == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("top_k", range(1, E + 1))
@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_a_bias_changes_who_is_chosen_and_not_the_weights(score: Any, top_k: int) -> None:
    router, x = BiasedTopKRouter(D, E, top_k, score), torch.randn(N, D)
    router.bias_E += torch.tensor([0.3, -0.3, 0.1, 0.0, -0.1, 0.2])
    routing, scores = router(x), numpy_scores(router, x, score)
    biased = scores + router.bias_E.double().numpy()
    for n in range(N):
        chosen = set(biased[n].argsort()[::-1][:top_k].tolist())
        by_weight = sorted(chosen, key=lambda e: -scores[n, e])
        assert routing.experts_NK[n].tolist() == by_weight
        expected = scores[n, by_weight] / (scores[n, by_weight].sum() if top_k > 1 else 1)
        np.testing.assert_allclose(routing.weights_NK[n].detach().numpy(), expected, rtol=1e-4)
    normalised = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(routing.probs_NE.detach().numpy(), normalised, rtol=1e-4)


def test_a_bias_s_choice_is_the_same_in_training_and_evaluation() -> None:
    router, x = BiasedTopKRouter(D, E, 2), torch.randn(N, D)
    router.bias_E += torch.linspace(-1, 1, E)
    torch.testing.assert_close(router.train()(x), router.eval()(x), rtol=0, atol=0)


def test_evaluation_alone_shifts_the_bias() -> None:
    router, x = BiasedTopKRouter(D, E, 2), torch.randn(N, D)
    router.bias_E += torch.linspace(-1, 1, E)
    in_training = router.train()(x)
    router.eval_shift_E -= router.bias_E
    torch.testing.assert_close(router.train()(x), in_training, rtol=0, atol=0)
    unbiased_NK = numpy_scores(router, x, "sigmoid").argsort(1)[:, ::-1][:, :2]
    np.testing.assert_array_equal(router.eval()(x).experts_NK.numpy(), unbiased_NK)


@pytest.mark.parametrize("name", ["bias_E", "eval_shift_E"])
def test_a_bias_is_saved_and_no_parameter(name: str) -> None:
    router = BiasedTopKRouter(D, E, 2)
    assert name in router.state_dict()
    assert name not in dict(router.named_parameters())


def test_a_checkpoint_from_before_evaluation_had_a_shift_loads_without_one() -> None:
    router = BiasedTopKRouter(D, E, 2)
    saved = {k: v for k, v in router.state_dict().items() if k != "eval_shift_E"}
    router.eval_shift_E += 1
    router.load_state_dict(saved)
    assert router.eval_shift_E.tolist() == [0] * E


def test_a_bias_keeps_its_small_steps_when_weights_are_converted_to_bfloat16() -> None:
    router = BiasedTopKRouter(D, E, 2)
    router.bias_E += 0.501
    router.eval_shift_E += 0.0501
    router.to(torch.bfloat16)
    assert router.gate.weight.dtype == torch.bfloat16
    torch.testing.assert_close(router.state_dict()["bias_E"], torch.full((E,), 0.501))
    torch.testing.assert_close(router.state_dict()["eval_shift_E"], torch.full((E,), 0.0501))


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_scores_too_small_for_float32_still_give_weights(score: Any) -> None:
    router = BiasedTopKRouter(D, E, 2, score)
    with torch.no_grad():
        router.gate.bias -= 200
    routing = router(torch.randn(N, D))
    torch.testing.assert_close(routing.weights_NK.sum(1), torch.ones(N))
    torch.testing.assert_close(routing.probs_NE.sum(1), torch.ones(N))


@pytest.mark.parametrize("kind", [TopKRouter, BiasedTopKRouter])
def test_without_a_bias_of_the_gate_opposite_tokens_have_opposite_logits(kind: Any) -> None:
    x = torch.randn(N, D)
    with_bias, without = kind(D, E, 2), kind(D, E, 2, bias=False)
    assert torch.equal(without(-x).logits_NE, -without(x).logits_NE)
    assert not torch.allclose(with_bias(-x).logits_NE, -with_bias(x).logits_NE)
    assert [name for name, _ in without.named_parameters()] == ["gate.weight"]


def test_noisy_scores_and_their_scale_are_given_in_training_alone() -> None:
    router, x = NoisyTopKRouter(D, E, 2), torch.randn(N, D)
    routing = router(x)
    assert torch.equal(routing.noisy_NE.topk(2).indices, routing.experts_NK)
    torch.testing.assert_close(routing.noise_scale_NE, F.softplus(router.noise(x)))
    assert router.eval()(x).noisy_NE is None
