"""A whole model with any of the newer parts computes what their formulas say."""

from collections.abc import Callable, Iterator
from functools import partial

import formulas
import numpy as np
import pytest
import torch
from modern import ALL, MODERN, activation_of
from torch import Tensor
from torch.nn import functional as F

from makemoe.model.positions import RotaryPositions
from makemoe.model.transformer import MoETransformer

Build = Callable[..., MoETransformer]
V, T = 11, 12
BASE = 10_000.0


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def by_formula(
    model: MoETransformer, ids: Tensor, activation: str, turned: int | None = None
) -> Tensor:
    weights = formulas.weights_of(model)
    base = BASE if isinstance(model.position_embedding, RotaryPositions) else None
    shape = {"n_head": model.n_head, "top_k": model.top_k, "activation": activation, "base": base}
    rows = [formulas.logits(row, weights, **shape, turned=turned) for row in ids.tolist()]
    return torch.tensor(np.array(rows))


@pytest.mark.parametrize("case", ALL)
def test_logits_are_those_of_the_formulas(build: Build, case: str) -> None:
    model, ids = build(**ALL[case]).eval(), torch.randint(V, (2, T))
    turned = 4 if case == "half of each head turned" else None  # of 8
    expected = by_formula(model, ids, activation_of(ALL[case]), turned)
    torch.testing.assert_close(model(ids)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", sorted(formulas.ACTIVATIONS))
def test_all_nonlinearities_work_within_all_parts(build: Build, activation: str) -> None:
    experts = partial(MODERN["experts"], activation=activation, bias=True)
    model, ids = build(**MODERN | {"experts": experts}).eval(), torch.randint(V, (1, T))
    expected = by_formula(model, ids, activation)
    torch.testing.assert_close(model(ids)[0], expected, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_the_formulas(build: Build) -> None:
    """Along a random direction of all weights, by central differences of the formulas."""
    model, ids = build(**MODERN), torch.randint(V, (1, T))

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    directions = [torch.randn_like(p) for p in model.parameters()]
    gradients = torch.autograd.grad(loss(model(ids)[0]), list(model.parameters()))
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    losses = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, direction in zip(model.parameters(), directions, strict=True):
                p += step * direction
        losses.append(loss(by_formula(model, ids, "silu")))
    assert slope.item() == pytest.approx(((losses[0] - losses[1]) / 2e-6).item(), rel=1e-6)
