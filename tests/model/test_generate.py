import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from makemoe.errors import UsageError
from makemoe.model.generate import Sampler, generate, next_token_probs
from makemoe.model.router import Routing
from makemoe.model.transformer import MoETransformer

V, T = 11, 12
PROMPTS = [[1], [2, 3, 4, 5], [6, 7, 8, 9, 10, 0, 1, 2], [5, 5]]
CUTS = [{}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.8}]


@pytest.fixture
def model(build: Callable[..., MoETransformer]) -> MoETransformer:
    return build(capacity_factor=0.5).eval()


def greedy(streams: int) -> Sampler:
    return Sampler([0] * streams, temperature=0)


def test_greedy_equals_the_oracle_far_past_block_size(model: MoETransformer) -> None:
    new = generate(model, PROMPTS, 3 * T, greedy(4))
    assert new == [oracle.generate(model, p, 3 * T, lambda z: int(z.argmax())) for p in PROMPTS]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_sampled_equals_the_oracle_far_past_block_size(
    model: MoETransformer, temperature: float, cuts: dict[str, float]
) -> None:
    seeds = [3, 1, 4, 15]
    new = generate(model, PROMPTS, 3 * T, Sampler(seeds, temperature, **cuts))
    for prompt, seed, tokens in zip(PROMPTS, seeds, new, strict=True):
        choose = oracle.sampler(seed, temperature, **cuts)
        assert tokens == oracle.generate(model, prompt, 3 * T, choose)
        assert all(0 <= token < V for token in tokens)


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_short_contexts_do(build: Callable[..., MoETransformer], block_size: int) -> None:
    model = build(block_size=block_size).eval()
    for tokens in generate(model, PROMPTS, 9, Sampler(range(4))):
        assert len(tokens) == 9
        assert all(0 <= token < V for token in tokens)


def test_the_original_slides_its_window_which_differs_only_past_block_size(
    model: MoETransformer,
) -> None:
    def original(prompt: list[int], count: int) -> list[int]:
        ids = list(prompt)
        for _ in range(count):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids[-T:]]))[0][0, -1].argmax()))
        return ids[len(prompt) :]

    new = generate(model, PROMPTS, 6 * T, greedy(4))
    differ = False
    for prompt, ours in zip(PROMPTS, new, strict=True):
        theirs = original(prompt, 6 * T)
        inside = T - len(prompt) + 1  # the last token is chosen with a context that is just full
        assert ours[:inside] == theirs[:inside]
        differ |= ours != theirs
    assert differ


@settings(deadline=None, max_examples=10)
@given(beside=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=20), max_size=4))
def test_a_streams_text_depends_on_its_own_seed_alone(beside: list[list[int]]) -> None:
    torch.manual_seed(0)
    model = MoETransformer(V, block_size=T, n_layer=1, n_embd=16, num_experts=4).eval()
    alone = generate(model, [[1, 2]], 2 * T, Sampler([7]))[0]
    seeds = [*range(len(beside)), 7]
    assert generate(model, [*beside, [1, 2]], 2 * T, Sampler(seeds))[-1] == alone
    assert generate(model, [[1, 2], *beside], 2 * T, Sampler(seeds[::-1]))[0] == alone


def test_seeds_make_the_text(model: MoETransformer) -> None:
    new = generate(model, [[1]] * 3, 20, Sampler([5, 6, 5]))
    assert new[0] == new[2] != new[1]


@pytest.mark.parametrize("bit", [1 << 32, 1 << 33, 1 << 61])
def test_every_bit_of_a_seed_counts(model: MoETransformer, bit: int) -> None:
    new = generate(model, [[1]] * 4, 20, Sampler([5, 5 + bit, 6 + bit, 5 + bit]))
    assert new[1] == new[3]
    assert len({tuple(new[b]) for b in (0, 1, 2)}) == 3


def test_a_small_seed_draws_what_torch_draws() -> None:
    for seed in (0, 1337, (1 << 32) - 1):
        sampler, draws = Sampler([seed]), torch.Generator().manual_seed(seed)
        for _ in range(100):
            expected = torch.rand(1, generator=draws, dtype=torch.float64)
            assert torch.equal(sampler.draw(), expected)


@pytest.mark.parametrize("seed", [5, 5 << 32])
def test_random_numbers_are_uniform(seed: int) -> None:
    sampler = Sampler([seed])
    drawn = np.array([sampler.draw().item() for _ in range(10_000)])
    distance = np.abs(np.sort(drawn) - (np.arange(10_000) + 0.5) / 10_000).max()
    assert distance < 0.0195  # Kolmogorov-Smirnov: exceeded with probability 0.001
    assert 0 <= drawn.min() <= drawn.max() < 1


class OnMps(Tensor):
    """A tensor on a device without float64, such as Apple's MPS."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        result = super().__torch_function__(func, types, args, kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float64:
                raise TypeError("the MPS framework doesn't support float64")
        return result


@pytest.mark.parametrize("cuts", CUTS)
def test_sampling_takes_no_float64_on_a_device_that_has_none(
    model: MoETransformer, cuts: dict[str, float]
) -> None:
    seeds = [1, 2 << 40, 3, 4]
    expected = generate(model, PROMPTS, 3 * T, Sampler(seeds, 0.8, **cuts))
    for parameter in model.parameters():
        parameter.data = parameter.data.as_subclass(OnMps)
    model.register_forward_hook(lambda _, __, out: (out[0].as_subclass(OnMps), out[1]))
    with pytest.raises(TypeError, match="float64"):
        model(torch.tensor([[1]]))[0].double()
    assert generate(model, PROMPTS, 3 * T, Sampler(seeds, 0.8, **cuts)) == expected


def test_of_a_long_prompt_the_last_block_size_ids_count(model: MoETransformer) -> None:
    tail = [i % V for i in range(T)]
    new = generate(model, [[9] * 50 + tail, tail, tail[1:]], 8, greedy(3))
    assert new[0] == new[1] == oracle.generate(model, tail, 8, lambda z: int(z.argmax()))
    assert new[2] != new[0]


def test_on_token_sees_every_token_and_ends_its_stream(model: MoETransformer) -> None:
    count, seeds = 2 * T, [1, 2, 3, 4]
    whole = generate(model, PROMPTS, count, Sampler(seeds))
    stop = whole[1][5]
    seen: list[list[int]] = [[] for _ in PROMPTS]

    def end_stream_1(stream: int, token: int) -> bool:
        seen[stream].append(token)
        return stream == 1 and token == stop

    new = generate(model, PROMPTS, count, Sampler(seeds), end_stream_1)
    assert new == seen
    assert new[1] == whole[1][: whole[1].index(stop) + 1]
    assert [new[b] for b in (0, 2, 3)] == [whole[b] for b in (0, 2, 3)]


def test_on_read_tells_each_token_once_and_how_it_was_routed(model: MoETransformer) -> None:
    count, seeds = 3 * T, [1, 2, 3, 4]
    told: list[list[tuple[int, list[tuple[list[int], Tensor]]]]] = [[] for _ in PROMPTS]

    def read(stream: int, ids: list[int], routings: list[Routing]) -> None:
        assert all(len(r.probs_NE) == len(ids) for r in routings)
        told[stream] += [
            (token, [(r.experts_NK[n].tolist(), r.weights_NK[n]) for r in routings])
            for n, token in enumerate(ids)
        ]

    new = generate(model, PROMPTS, count, Sampler(seeds), lambda b, token: b == 1, read)
    whole = generate(model, PROMPTS, count, Sampler(seeds), lambda b, token: b == 1)
    assert new == whole
    for prompt, tokens, of_stream in zip(PROMPTS, new, told, strict=True):
        assert [token for token, _ in of_stream] == prompt + tokens
        context: list[int] = []
        for token, layers in of_stream:
            context = [*context, token]
            context = context if len(context) <= T else context[-(T // 2) :]
            with torch.no_grad():
                expected = model(torch.tensor([context]))[1]
            for routing, (experts, weights) in zip(expected, layers, strict=True):
                assert experts == routing.experts_NK[-1].tolist()
                torch.testing.assert_close(weights, routing.weights_NK[-1])


def test_of_a_long_prompt_only_what_counts_is_read(model: MoETransformer) -> None:
    prompt, told = [i % V for i in range(3 * T)], []
    new = generate(model, [prompt], 2, greedy(1), on_read=lambda b, ids, _: told.append(ids))
    assert told == [prompt[-T:], new[0][:1], new[0][1:]]


def test_global_random_state_is_not_touched(model: MoETransformer) -> None:
    before = torch.get_rng_state()
    generate(model, PROMPTS, 2 * T, Sampler(range(4)))
    assert torch.equal(torch.get_rng_state(), before)


@settings(deadline=None, max_examples=100)
@given(
    logits=st.lists(st.integers(-400, 400), min_size=1, max_size=12, unique=True),
    temperature=st.floats(0.05, 20),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 1),
)
def test_distribution_equals_the_closed_form(
    logits: Sequence[int], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    scores = np.array(logits) / 100
    probs = next_token_probs(torch.from_numpy(scores)[None].float(), temperature, top_k, top_p)
    expected = oracle.next_token_probs(
        np.float32(scores).astype(np.float64), temperature, top_k, top_p
    )
    np.testing.assert_allclose(probs[0].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_cuts_keep_the_fewest_likeliest() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64).log()
    cases = {
        (2, None): [[0, 4 / 7, 0, 3 / 7], [7 / 8, 1 / 8, 0, 0]],
        (None, 0.65): [[0, 4 / 7, 0, 3 / 7], [1, 0, 0, 0]],
        (None, 0.75): [[0, 4 / 9, 2 / 9, 3 / 9], [7 / 8, 1 / 8, 0, 0]],
        (2, 0.5): [[0, 1, 0, 0], [1, 0, 0, 0]],  # 4/7 of what top_k left
        (None, 1.0): logits.exp().tolist(),
        (1, None): [[0, 1, 0, 0], [1, 0, 0, 0]],
    }
    for (top_k, top_p), expected in cases.items():
        probs = next_token_probs(logits, 1.0, top_k, top_p)
        torch.testing.assert_close(probs, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("cuts", CUTS)
def test_frequencies_follow_the_probabilities(cuts: dict[str, float]) -> None:
    draws, logits = 5000, torch.randn(8)
    tokens = Sampler(range(draws), 1.3, **cuts)(logits.expand(draws, 8))
    expected = draws * oracle.next_token_probs(logits.double().numpy(), 1.3, **cuts)
    counts, kept = np.bincount(tokens.numpy(), minlength=8), expected > 0
    assert counts[~kept].sum() == 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < 24.3  # exceeded with probability 0.001 at 7 degrees of freedom


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_a_symbol_cut_off_is_not_drawn_at_the_ends(
    monkeypatch: pytest.MonkeyPatch, draw: float
) -> None:
    monkeypatch.setattr(Sampler, "draw", lambda self: torch.tensor([draw], dtype=torch.float64))
    logits = torch.tensor([[1.0, 2.0, 9.0, 3.0]])
    assert Sampler([0], top_k=1)(logits).tolist() == [2]


def test_one_streams_draws_are_independent() -> None:
    sampler, logits = Sampler([0]), torch.zeros(1, 2)
    drawn = np.array([int(sampler(logits)) for _ in range(2000)])
    pairs = np.bincount(2 * drawn[:-1] + drawn[1:], minlength=4) / 1999
    assert pairs == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-30, 1e-310])
def test_temperature_near_zero_is_argmax(temperature: float) -> None:
    logits = torch.randn(50, V)
    assert torch.equal(Sampler(range(50), temperature)(logits), logits.argmax(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"top_k": 0}, "sample_top_k 0"),
        ({"top_k": -1}, "sample_top_k -1"),
        ({"top_p": 0.0}, "sample_top_p 0.0"),
        ({"top_p": 1.01}, "sample_top_p 1.01"),
        ({"top_p": math.nan}, "sample_top_p nan"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampler([0], **options)


@pytest.mark.parametrize("count", [0, -1])
def test_at_least_one_token_is_asked_for(model: MoETransformer, count: int) -> None:
    with pytest.raises(UsageError, match=f"max_new_tokens {count}"):
        generate(model, [[1]], count, greedy(1))
