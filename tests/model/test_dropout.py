"""Dropout drops the right share, keeps the mean, and draws from torch's generator alone."""

import pytest
import torch
from torch import Tensor

from makemoe.model.dropout import Dropout, keep_mask

SHAPE = (1000, 333)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_dropped_is_p_and_the_rest_is_scaled_up(p: float, dtype: torch.dtype) -> None:
    y = Dropout(p)(torch.ones(SHAPE, dtype=dtype))
    share = (y == 0).double().mean().item()
    # Five standard deviations of a binomial share.
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / y.numel()) ** 0.5 + 1e-5)
    kept = y[y != 0].double()
    assert kept.min() == kept.max() == pytest.approx(1 / (1 - p), rel=1e-2)


def test_elements_are_dropped_independently_of_their_neighbours() -> None:
    dropped = (keep_mask(torch.ones(SHAPE), 0.3) == 0).double().flatten()
    for distance in (1, 2, 3, 4, 333):
        both = (dropped[:-distance] * dropped[distance:]).mean().item()
        assert both == pytest.approx(0.09, abs=5e-3)


def test_gradients_go_where_the_output_came_from() -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    y = Dropout(0.25)(x)
    y.sum().backward()
    gradient = x.grad
    assert isinstance(gradient, Tensor)
    torch.testing.assert_close(y.detach(), x.detach() * gradient)


def test_the_same_seed_drops_the_same() -> None:
    masks = []
    for _ in range(2):
        torch.manual_seed(5)
        masks.append(keep_mask(torch.ones(7, 5), 0.5))
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], keep_mask(torch.ones(7, 5), 0.5))


def test_evaluation_and_zero_change_nothing() -> None:
    x = torch.randn(3, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
