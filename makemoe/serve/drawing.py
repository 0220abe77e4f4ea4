"""Draws the next token of several texts at once, each by its own settings and random numbers."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from makemoe.model.generate import next_token_probs, picked, random_numbers


class Drawing:
    """How the tokens of one text are drawn; the same as a `Sampler` with a single seed.

    Args:
        seed: of its random numbers, which no other text uses.
        temperature: 0 takes the most likely token.
        top_k: keep only that many most likely tokens; None: all.
        top_p: keep the smallest set of most likely tokens with this total probability; None: all.
    """

    def __init__(
        self,
        seed: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.numbers = numbers(seed)

    @property
    def cuts(self) -> bool:
        """Whether unlikely tokens are left out."""
        return self.top_k is not None or self.top_p is not None


def numbers(seed: int) -> Iterator[float]:
    """The random numbers of a seed, without end."""
    draw_some = random_numbers(seed)
    while True:
        yield from draw_some().tolist()


def draw(logits_BV: Tensor, drawings: Sequence[Drawing]) -> list[int | None]:
    """The next token of each text; None where the logits are not finite.

    Texts whose settings differ are drawn together: a call per text would take longer than the
    model's step.
    """
    finite = logits_BV.isfinite().all(-1).tolist()
    tokens: list[int | None] = list(logits_BV.argmax(-1).tolist())
    random = [b for b, drawing in enumerate(drawings) if drawing.temperature and finite[b]]
    for cuts in (False, True):
        rows = [b for b in random if drawings[b].cuts is cuts]
        if rows:
            chosen = draw_random(logits_BV[rows], [drawings[b] for b in rows], cuts)
            for b, token in zip(rows, chosen, strict=True):
                tokens[b] = token
    return [token if is_finite else None for token, is_finite in zip(tokens, finite, strict=True)]


def draw_random(logits_BV: Tensor, drawings: Sequence[Drawing], cuts: bool) -> list[int]:
    """The tokens of texts with a temperature above 0, of which all or none leave tokens out."""
    top_k = top_p = None
    if cuts:
        V = logits_BV.shape[-1]
        top_k = torch.tensor([[V if d.top_k is None else min(d.top_k, V)] for d in drawings])
        # Above every sum of probabilities: nothing is left out.
        top_p = column([2.0 if d.top_p is None else d.top_p for d in drawings])
    temperature_B1 = column([d.temperature for d in drawings])
    probs_BV = next_token_probs(logits_BV, temperature_B1, top_k, top_p)
    drawn = torch.tensor([next(d.numbers) for d in drawings], dtype=torch.float64)
    ids: list[int] = picked(probs_BV, drawn).tolist()
    return ids


def column(numbers: Sequence[float]) -> Tensor:
    """A number per row, (B, 1)."""
    return torch.tensor(numbers, dtype=torch.float64)[:, None]
