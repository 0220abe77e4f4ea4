"""Checks, before any timing, that the baseline computes the same as the package.

Compared in float64. In float32 a ReLU whose input is near zero may be on in one model and off in
the other, because they round differently, and that moves single gradients by a percent; whether it
happens depends on the processor.
"""

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models import LARGE, RECIPE, Size, batches, ours
from benchmarks.plain_moe import PlainMoE, copy_of
from makemoe.model.generate import Sampler, generate
from makemoe.model.transformer import MoETransformer

TOLERANCE = 1e-9
"""Largest allowed difference in float64, relative to the largest number compared."""

ROUGHLY = 0.05
"""The same in float32, of Euclidean norms, because float32 is timed and takes other paths."""

MOST_TEXT = 63
"""Number of tokens of greedy text to compare; they fit the context, so both see all of it."""

Figures = Iterator[tuple[str, Tensor, Tensor]]


class NotEqualError(Exception):
    """Raised if two models that should compute the same differ."""


def check_models(device: str) -> None:
    """Compare at both sizes, or raise NotEqualError."""
    for size in (RECIPE, LARGE._replace(batch_size=2)):
        fast = ours(size, dropout=0.0).to(device)
        check_equal(fast, copy_of(fast, dropout=0.0), size)


def check_equal(fast: MoETransformer, plain: PlainMoE, size: Size) -> None:
    """Raise NotEqualError unless logits, loss, every gradient and greedy text agree.

    Compared in evaluation mode, without router noise and dropout.
    """
    for what, mine, theirs in figures(fast, plain, size, torch.float64):
        check_close(what, mine.abs().max(), (mine - theirs).abs().max(), TOLERANCE)
    check_text(deepcopy(fast).double().eval(), deepcopy(plain).double().eval(), size)
    logits, loss, *gradients = figures(fast, plain, size, torch.float32)
    _, mine, theirs = zip(*gradients, strict=True)
    together = torch.cat([g.flatten() for g in mine]), torch.cat([g.flatten() for g in theirs])
    for what, mine, theirs in (logits, loss, ("the gradients", *together)):
        check_close(f"{what} in float32", mine.norm(), (mine - theirs).norm(), ROUGHLY)


def check_text(fast: MoETransformer, plain: PlainMoE, size: Size) -> None:
    ((x_BT, _),) = batches(size, 1, str(fast.head.weight.device))
    prompt, length = x_BT[:1, :1], min(MOST_TEXT, size.block_size - 1)
    text = generate(fast, prompt.tolist(), length, Sampler([0], temperature=0))
    if text != greedy(plain, prompt, length):
        raise NotEqualError("the baseline's greedy text differs from the package's")


def figures(fast: MoETransformer, plain: PlainMoE, size: Size, dtype: torch.dtype) -> Figures:
    """Names and values of what both compute in `dtype`: logits, loss and gradients."""
    fast, plain = deepcopy(fast).to(dtype).eval(), deepcopy(plain).to(dtype).eval()
    ((x_BT, y_BT),) = batches(size, 1, str(fast.head.weight.device))
    logits_BTV, plain_logits_BTV = fast(x_BT)[0], plain(x_BT)
    yield "logits", logits_BTV, plain_logits_BTV
    losses = [
        F.cross_entropy(x.flatten(0, 1), y_BT.flatten()) for x in (logits_BTV, plain_logits_BTV)
    ]
    yield "the loss", *losses
    for loss in losses:
        loss.backward()
    # Store the gradients as weights, so that the function that copies weights copies gradients.
    gradients = copy_of(with_gradients_as_weights(fast), dropout=0.0)
    for (name, mine), parameter in zip(
        gradients.named_parameters(), plain.parameters(), strict=True
    ):
        yield f"the gradient of {name}", mine, gradient(parameter)


def check_close(what: str, size: Tensor, difference: Tensor, tolerance: float) -> None:
    if not difference <= tolerance * size:
        raise NotEqualError(
            f"the baseline differs from the package in {what}: by {difference:.2g} of {size:.2g}"
        )


@torch.no_grad()
def with_gradients_as_weights(model: MoETransformer) -> MoETransformer:
    copy = deepcopy(model)
    for mine, theirs in zip(copy.parameters(), model.parameters(), strict=True):
        mine.copy_(gradient(theirs))
    return copy


def gradient(parameter: nn.Parameter) -> Tensor:
    """Use zeros for parameters without gradient, such as the scale of unused noise."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@torch.no_grad()
def greedy(plain: PlainMoE, ids_BT: Tensor, length: int) -> list[list[int]]:
    for _ in range(length):
        ids_BT = torch.cat([ids_BT, plain(ids_BT)[:, -1:].argmax(-1)], dim=1)
    return ids_BT[:, -length:].tolist()
