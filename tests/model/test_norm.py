"""Norms of vectors, against their formulas."""

import formulas
import pytest
import torch

from makemoe.errors import UsageError
from makemoe.model.norm import LayerNorm, Norm, RMSNorm

D = 7
BOTH = pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])


def by_formula(layer: Norm, x: torch.Tensor, eps: float) -> torch.Tensor:
    weights = formulas.weights_of(layer)
    one = formulas.layer_norm if isinstance(layer, LayerNorm) else formulas.rms_norm
    rows = x.detach().double().numpy().reshape(-1, D)
    return torch.stack([torch.tensor(one(row, weights, eps)) for row in rows]).view(x.shape)


@BOTH
@pytest.mark.parametrize("eps", [None, 1e-3, 2.0])
def test_a_norm_is_its_formula(norm: type[LayerNorm | RMSNorm], eps: float | None) -> None:
    layer = (norm(D) if eps is None else norm(D, eps)).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = 3 + torch.randn(2, 5, D, dtype=torch.float64)
    usual = 1e-5 if norm is LayerNorm else 1e-6
    expected = by_formula(layer, x, usual if eps is None else eps)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@BOTH
def test_a_new_norm_makes_the_mean_square_one(norm: type[LayerNorm | RMSNorm]) -> None:
    x = 1e3 * torch.randn(9, D)
    mean_square = norm(D)(x).square().mean(-1)
    torch.testing.assert_close(mean_square, torch.ones(9), rtol=1e-4, atol=0)


@BOTH
def test_a_vector_of_zeros_stays_finite(norm: type[LayerNorm | RMSNorm]) -> None:
    x = torch.zeros(1, D, requires_grad=True)
    y = norm(D)(x)
    assert (y == 0).all()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all()


def test_rms_norm_keeps_the_mean_and_layer_norm_removes_it() -> None:
    x = 3 + torch.randn(50, D)
    assert RMSNorm(D)(x).mean() > 0.8
    assert LayerNorm(D)(x).mean().abs() < 1e-5
    assert sum(p.numel() for p in RMSNorm(D).parameters()) == D
    assert sum(p.numel() for p in LayerNorm(D).parameters()) == 2 * D


def test_rms_norm_of_narrow_numbers_is_computed_as_wide_as_its_weights() -> None:
    layer = RMSNorm(D)
    x = torch.randn(9, D).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, by_formula(layer, x, 1e-6).bfloat16(), rtol=0, atol=0)


@BOTH
@pytest.mark.parametrize("eps", [0.0, -1e-6, float("inf"), float("nan")])
def test_an_eps_that_does_not_keep_it_finite_is_refused(
    norm: type[LayerNorm | RMSNorm], eps: float
) -> None:
    with pytest.raises(UsageError, match=rf"{norm.__name__}: eps {eps} is out of range: use a sma"):
        norm(D, eps)
