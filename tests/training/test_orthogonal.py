"""Orthogonalisation against the singular value decomposition, and against torch's iteration."""

import pytest
import torch
from torch import Tensor
from torch.optim import _muon as torch_muon

from makemoe.training.orthogonal import (
    COEFFICIENTS,
    EPS,
    MOST_STEPS,
    by_gram,
    by_iterates,
    orthogonalised,
)

SHAPES = [(3, 8, 32), (3, 32, 8), (2, 16, 16), (1, 1, 7), (4, 7, 1), (1, 1, 1)]


def exactly(x_MRC: Tensor, steps: int) -> Tensor:
    """The polynomial on the singular values themselves, in float64."""
    a, b, c = COEFFICIENTS
    u, s, v = torch.linalg.svd(x_MRC.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u * s[:, None] @ v


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5, MOST_STEPS])
def test_the_polynomial_acts_on_the_singular_values(shape: tuple[int, ...], steps: int) -> None:
    x_MRC = torch.randn(shape)
    torch.testing.assert_close(
        orthogonalised(x_MRC, steps).double(), exactly(x_MRC, steps), rtol=0, atol=3e-5
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float64_it_is_exact_to_more_digits(shape: tuple[int, ...]) -> None:
    x_MRC = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(orthogonalised(x_MRC, 5), exactly(x_MRC, 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [5, MOST_STEPS])
def test_singular_values_of_every_size_stay_bounded(steps: int) -> None:
    # From 1 down to what float32 cannot tell from 0 in a Gram matrix, and 0 itself.
    values = torch.cat([torch.logspace(0, -12, 63), torch.zeros(1)])
    u, _, v = torch.linalg.svd(torch.randn(64, 256, dtype=torch.float64), full_matrices=False)
    x_RC = (u * values @ v).float()
    turned = orthogonalised(x_RC[None], steps)[0].double()
    torch.testing.assert_close(turned, exactly(x_RC[None], steps)[0], rtol=0, atol=3e-3)
    kept = torch.linalg.vecdot(u.mT @ turned, v)  # what became of each singular value
    assert kept[values / values.norm() > 0.002].min() > 0.67
    assert kept.abs().max() < 1.21


def test_rank_one_and_zero_matrices() -> None:
    outer = torch.randn(16, 1) @ torch.randn(1, 40)
    turned = orthogonalised(torch.stack([outer, torch.zeros(16, 40)]), 5)
    torch.testing.assert_close(turned[:1].double(), exactly(outer[None], 5), rtol=0, atol=1e-4)
    assert not turned[1].any()


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_size_of_a_matrix_does_not_matter_unless_it_is_nearly_zero(size: float) -> None:
    x_MRC = torch.randn(2, 8, 12)
    turned = orthogonalised(size * x_MRC, 5)
    if size < EPS:
        assert turned.abs().max() < 0.1
    else:
        torch.testing.assert_close(turned, orthogonalised(x_MRC, 5), rtol=0, atol=1e-5)


def test_matrices_of_a_batch_do_not_depend_on_each_other() -> None:
    x_MRC = torch.randn(5, 12, 8) * torch.logspace(-3, 3, 5)[:, None, None]
    alone = torch.cat([orthogonalised(x_RC[None], 5) for x_RC in x_MRC])
    torch.testing.assert_close(orthogonalised(x_MRC, 5), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (16, 16)])
def test_iterates_in_bfloat16_are_torch_s(shape: tuple[int, int]) -> None:
    x_RC = torch.randn(shape)
    theirs = torch_muon._zeropower_via_newtonschulz(x_RC, COEFFICIENTS, 5, EPS)
    mine = by_iterates(x_RC[None], 5, torch.bfloat16)[0]
    assert mine.dtype == theirs.dtype == torch.bfloat16
    # Each rounds to 2^-9, and so does every product of five steps.
    torch.testing.assert_close(mine.float(), theirs.float(), rtol=0, atol=0.05)
    # Both are as near to the same iteration in float32.
    exact = by_gram(x_RC[None], 5, torch.float32)[0]
    torch.testing.assert_close(mine.float(), exact, rtol=0, atol=0.05)


def test_the_type_of_the_products_can_be_chosen_but_not_for_float64() -> None:
    x_MRC = torch.randn(2, 8, 32)
    rounded = orthogonalised(x_MRC, 5, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exactly(x_MRC, 5), rtol=0, atol=0.05)
    whole = orthogonalised(x_MRC, 5, torch.float32)
    torch.testing.assert_close(whole.double(), exactly(x_MRC, 5), rtol=0, atol=3e-5)
    double = orthogonalised(x_MRC.double(), 5, torch.bfloat16)
    torch.testing.assert_close(double, exactly(x_MRC, 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 8, 32), (3, 32, 8), (2, 16, 16)])
def test_the_products_of_grams_and_of_iterates_agree(shape: tuple[int, ...]) -> None:
    x_MRC = torch.randn(shape)
    by_grams, iterated = by_gram(x_MRC, 5, torch.float32), by_iterates(x_MRC, 5, torch.float32)
    torch.testing.assert_close(by_grams, iterated, rtol=0, atol=1e-4)


def test_autocast_does_not_round_it() -> None:
    x_MRC = torch.randn(2, 16, 40)
    with torch.autocast("cpu", torch.bfloat16):
        turned = orthogonalised(x_MRC, 5)
    assert torch.equal(turned, orthogonalised(x_MRC, 5))


@pytest.mark.gpu
def test_on_a_gpu_it_agrees_to_bfloat16() -> None:
    x_MRC = torch.randn(3, 32, 8)
    turned = orthogonalised(x_MRC.cuda(), 5)
    torch.testing.assert_close(turned.float().cpu(), orthogonalised(x_MRC, 5), rtol=0, atol=0.05)
