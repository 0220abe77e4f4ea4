"""Samples from a model with a key-value cache, many streams at once."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from makemoe.errors import NotFiniteError, UsageError
from makemoe.model.attention import LayerCache
from makemoe.model.router import Routing
from makemoe.model.transformer import MoETransformer

DRAWS = 64
"""Random numbers drawn ahead per stream; this does not change the sequence."""

OnToken = Callable[[int, int], bool]
"""Called with a stream and its new id; True ends the stream."""

OnRead = Callable[[int, list[int], list[Routing]], None]
"""Called with a stream, ids, and one Routing of these ids per layer."""


def next_token_probs(
    logits_BV: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor | None = None,
    top_p: float | Tensor | None = None,
) -> Tensor:
    """The distribution of the next token, (B, V) to (B, V), float64, on the CPU.

    Not every device has float64, and the chosen ids are needed on the CPU anyway. Every setting is
    a number, or a tensor (B, 1) on the CPU: one per row.

    Args:
        logits_BV: the model's logits.
        temperature: divides the logits; must be positive.
        top_k: keep only the `top_k` most likely symbols.
        top_p: keep only the smallest set of most likely symbols whose probabilities sum to at
            least `top_p` (nucleus sampling, arXiv:1904.09751, equation 2).
    """
    logits_BV = logits_BV.cpu().double()
    # Relative to their maximum, scaled logits cannot overflow, however small the temperature.
    below_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    probs_BV = (below_BV / temperature).softmax(-1)
    if top_k is not None or top_p is not None:
        sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        if top_k is not None:
            kept = top_k if isinstance(top_k, Tensor) else min(top_k, sorted_BV.shape[-1])
            sorted_BV.masked_fill_(torch.arange(sorted_BV.shape[-1]) >= kept, 0)
        if top_p is not None:
            before_BV = sorted_BV.cumsum(-1) - sorted_BV
            sorted_BV[before_BV >= top_p * sorted_BV.sum(-1, keepdim=True)] = 0
        probs_BV = torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV)
        probs_BV /= probs_BV.sum(-1, keepdim=True)
    return probs_BV


def picked(probs_BV: Tensor, numbers_B: Tensor) -> Tensor:
    """The ids, (B,), that random numbers in [0, 1) pick from distributions."""
    cdf_BV = probs_BV.cumsum(-1)
    threshold_B1 = numbers_B[:, None] * cdf_BV[:, -1:]
    return (cdf_BV <= threshold_B1).sum(-1).clamp(max=probs_BV.shape[-1] - 1)


class Sampler:
    """Draws one token per stream and step; each stream has its own random numbers.

    The draws of stream b depend only on `seeds[b]` and on how many came before, not on other
    streams.

    Args:
        seeds: one per stream, 0 or more.
        temperature: 0 takes the most likely symbol; 1 samples from the model's own distribution.
        top_k: see `next_token_probs`.
        top_p: see `next_token_probs`.

    Raises:
        UsageError: if the temperature is negative or not finite, top_k below 1, or top_p not from
            above 0 to 1.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        if not 0 <= temperature < math.inf:
            raise UsageError(f"temperature {temperature} is invalid: use 0 (greedy) or more")
        if top_k is not None and top_k < 1:
            raise UsageError(f"sample_top_k {top_k} is too small: use 1 or more")
        if top_p is not None and not 0 < top_p <= 1:
            raise UsageError(f"sample_top_p {top_p} is out of range: use more than 0, at most 1")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.sources = list(map(random_numbers, seeds))
        self.drawn: list[Tensor] = []

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The chosen ids, (B,), on the logits' device; NotFiniteError if these are not finite."""
        if not logits_BV.isfinite().all():
            raise NotFiniteError("the model's logits are not finite (NaN or infinite)")
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        probs_BV = next_token_probs(logits_BV, self.temperature, self.top_k, self.top_p)
        return picked(probs_BV, self.draw()).to(logits_BV.device)

    def draw(self) -> Tensor:
        """Each stream's next random number in [0, 1), (B,)."""
        if not self.drawn:  # many at once, because a call costs more than the numbers it draws
            ahead = [draw_some() for draw_some in self.sources]
            self.drawn = list(torch.stack(ahead, dim=1).flip(0))
        return self.drawn.pop()


def random_numbers(seed: int) -> Callable[[], Tensor]:
    """A source of random numbers in [0, 1), (DRAWS,), float64; all bits of the seed count."""
    if seed < 1 << 32:
        own = torch.Generator().manual_seed(seed)
        return partial(torch.rand, DRAWS, generator=own, dtype=torch.float64)
    # torch's generator, a Mersenne twister, takes the low 32 bits of a seed.
    philox = np.random.Generator(np.random.Philox(key=seed))
    return lambda: torch.from_numpy(philox.random(DRAWS))


def generate(
    model: MoETransformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampler: Sampler,
    on_token: OnToken | None = None,
    on_read: OnRead | None = None,
) -> list[list[int]]:
    """The new ids of each stream; see `steps`."""
    new: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for drawn in steps(model, prompts, max_new_tokens, sampler, ended, on_read):
        for b, token in drawn:
            new[b].append(token)
            ended[b] = on_token is not None and on_token(b, token)
    return new


@torch.inference_mode()
def steps(
    model: MoETransformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampler: Sampler,
    ended: list[bool],
    on_read: OnRead | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Continue each prompt by up to `max_new_tokens` tokens; yield those of each step, unstored.

    While prompt and continuation fit block_size, every token sees all earlier ones. A stream that
    has filled its context continues with the later half of it, so that the cache is rebuilt once
    per block_size / 2 tokens instead of for each token.

    Args:
        model: in evaluation mode.
        prompts: token ids, one non-empty sequence per stream; of a long one, only the last
            block_size ids are used.
        max_new_tokens: number of tokens to add to each stream.
        sampler: draws the tokens.
        ended: one per stream; the caller sets it between two steps to end a stream.
        on_read: called with the tokens of a stream that the model reads for the first time: the
            prompt, then each new token, including the last, which is read only for this call.
            Tokens that a rebuilt cache reads again are not passed again.

    Yields:
        (stream, token) of each stream that has not ended.

    Raises:
        UsageError: if `max_new_tokens` is below 1.
    """
    assert not model.training
    assert prompts
    assert all(prompts)
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens {max_new_tokens} is too small: use 1 or more")
    contexts = [list(prompt[-model.block_size :]) for prompt in prompts]
    cache = model.new_cache(len(prompts))
    everyone = list(range(len(prompts)))
    logits_BV = _prefill(model, cache, contexts, everyone, on_read, [0] * len(prompts))
    for to_come in reversed(range(max_new_tokens)):
        ids_B = sampler(logits_BV)
        reading = [b for b in everyone if not ended[b]]
        tokens = ids_B.tolist()
        for b in reading:
            contexts[b].append(tokens[b])
        yield [(b, tokens[b]) for b in reading]
        if on_read is None:
            reading = [b for b in reading if to_come and not ended[b]]
        if not reading:
            return
        full = [b for b in reading if len(contexts[b]) > model.block_size]
        for b in full:
            contexts[b] = contexts[b][-max(1, model.block_size // 2) :]
        if len(full) < len(prompts):
            # Full and finished streams compute too; their results are overwritten or not read.
            last = [min(len(context), model.block_size) - 1 for context in contexts]
            logits_BTV, routings = model(ids_B[:, None], cache, last)
            logits_BV = logits_BTV[:, -1]
            if on_read is not None:
                for b in (b for b in reading if b not in full):
                    on_read(b, contexts[b][-1:], of_tokens(routings, slice(b, b + 1)))
        if full:
            known = [len(contexts[b]) - 1 for b in full]
            logits_BV[full] = _prefill(model, cache, contexts, full, on_read, known)
        if all(ended):
            return


def _prefill(
    model: MoETransformer,
    cache: list[LayerCache],
    contexts: list[list[int]],
    rows: list[int],
    on_read: OnRead | None,
    known: list[int],
) -> Tensor:
    """Write some rows' contexts into the cache; return the logits after each, (len(rows), V).

    For each row, `on_read` gets the ids after the first `known` ones.
    """
    device = model.head.weight.device
    lengths = [len(contexts[b]) for b in rows]
    ids_BT = padded([contexts[b] for b in rows])
    T = ids_BT.shape[1]
    all_rows = len(rows) == len(contexts)
    part = cache if all_rows else model.new_cache(len(rows))
    logits_BTV, routings = model(ids_BT.to(device), part, [0] * len(rows))
    if not all_rows:
        for whole, piece in zip(cache, part, strict=True):
            whole.keys[rows], whole.values[rows] = piece.keys, piece.values
    if on_read is not None:
        for i, b in enumerate(rows):
            tokens = slice(i * T + known[i], i * T + lengths[i])
            on_read(b, contexts[b][known[i] :], of_tokens(routings, tokens))
    logits_BV: Tensor = logits_BTV[range(len(rows)), [n - 1 for n in lengths]]
    return logits_BV


def padded(contexts: Sequence[Sequence[int]]) -> Tensor:
    """Contexts as the rows of a tensor (B, T) of ids.

    Shorter rows are padded on the right: no token sees what comes after it, and in a cache, a
    padded position is overwritten before its row reaches it.
    """
    ids_BT = torch.zeros(len(contexts), max(map(len, contexts)), dtype=torch.int64)
    for row, context in enumerate(contexts):
        ids_BT[row, : len(context)] = torch.tensor(context)
    return ids_BT


def of_tokens(routings: list[Routing], tokens: slice | list[int]) -> list[Routing]:
    """The routings restricted to some of the tokens."""
    parts = [[None if t is None else t[tokens] for t in routing] for routing in routings]
    return [Routing._make(part) for part in parts]
