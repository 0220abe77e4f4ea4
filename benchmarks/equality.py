"""Checks, before any timing, that the baseline computes the same as the package."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from benchmarks.models import LARGE, RECIPE, Size, batches, ours
from benchmarks.plain_moe import PlainMoE, copy_of
from makemoe.model.generate import Sampler, generate
from makemoe.model.transformer import MoETransformer
from makemoe.training.losses import cross_entropy

TOLERANCE = 1e-4
"""Largest allowed difference, relative to the largest number compared."""

MOST_TEXT = 63
"""Number of tokens of greedy text to compare; they fit the context, so both see all of it."""


class NotEqualError(Exception):
    """Raised if two models that should compute the same differ."""


def check_models(device: str) -> None:
    """Compare at both sizes, or raise NotEqualError."""
    for size in (RECIPE, LARGE._replace(batch_size=2)):
        fast = ours(size, dropout=0.0).to(device)
        check_equal(fast, copy_of(fast, dropout=0.0).to(device), size)


def check_equal(fast: MoETransformer, plain: PlainMoE, size: Size) -> None:
    """Raise NotEqualError unless logits, every gradient and greedy text agree.

    Compared in evaluation mode, without router noise and dropout.
    """
    device = fast.head.weight.device
    ((x_BT, y_BT),) = batches(size, 1, str(device))
    fast.eval(), plain.eval()
    logits_BTV, plain_logits_BTV = fast(x_BT)[0], plain(x_BT)
    check_close("logits", logits_BTV, plain_logits_BTV)
    cross_entropy(logits_BTV, y_BT).backward()
    cross_entropy(plain_logits_BTV, y_BT).backward()
    # Store the gradients as weights, so that the function that copies weights copies gradients.
    gradients = copy_of(with_gradients_as_weights(fast), dropout=0.0)
    for (name, expected), parameter in zip(
        gradients.named_parameters(), plain.parameters(), strict=True
    ):
        check_close(f"the gradient of {name}", expected.to(device), gradient(parameter))
    prompt, length = x_BT[:1, :1], min(MOST_TEXT, size.block_size - 1)
    text = generate(fast, prompt.tolist(), length, Sampler([0], temperature=0))
    if text != greedy(plain, prompt, length):
        raise NotEqualError("the baseline's greedy text differs from the package's")
    fast.zero_grad(), plain.zero_grad()


def check_close(what: str, one: Tensor, other: Tensor) -> None:
    difference, largest = (one - other).abs().max(), one.abs().max()
    if not difference <= TOLERANCE * largest:
        raise NotEqualError(
            f"the baseline differs from the package in {what}: by {difference:.2g} of {largest:.2g}"
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
