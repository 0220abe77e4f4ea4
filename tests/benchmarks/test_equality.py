from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.equality import NotEqualError, check_equal
from benchmarks.models import Size, ours
from benchmarks.plain_moe import PlainMoE, copy_of
from makemoe.model.transformer import MoETransformer

SMALL = Size(block_size=16, batch_size=4, n_layer=2)
Pair = tuple[MoETransformer, PlainMoE]


@pytest.fixture
def pair() -> Pair:
    fast = ours(SMALL, dropout=0.0)
    return fast, copy_of(fast, dropout=0.0)


def test_the_baseline_computes_what_the_package_computes(pair: Pair) -> None:
    check_equal(*pair, SMALL)


def test_another_processors_rounding_is_no_difference() -> None:
    def round_otherwise(layer: object, args: object, y: Tensor) -> Tensor | None:
        return y + 1e-7 * torch.randn_like(y) if y.dtype == torch.float32 else None

    fast = ours(SMALL, dropout=0.0)
    layer = fast.blocks[0].moe.experts.fc_in
    with torch.no_grad():  # the input of each expert's first ReLU is zero but for rounding
        layer.weight[:, :, 0], layer.bias[:, 0] = 0, 0
    plain = copy_of(fast, dropout=0.0)
    for expert in plain.blocks[0].moe.experts:
        expert[0].register_forward_hook(round_otherwise)
    check_equal(fast, plain, SMALL)


def scale_head(plain: PlainMoE) -> None:
    plain.head.weight.data *= 1 + 1e-6


def compute_float32_otherwise(plain: PlainMoE) -> None:
    plain.register_forward_hook(lambda *args: args[-1] * (1 + (args[-1].dtype == torch.float32)))


def stop_a_gradient(plain: PlainMoE) -> None:
    plain.blocks[0].moe.register_forward_hook(lambda *args: args[-1].detach())


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (scale_head, "logits"),
        (stop_a_gradient, "gradient of"),
        (compute_float32_otherwise, "logits in float32"),
    ],
)
def test_a_difference_is_found_and_named(
    pair: Pair, spoil: Callable[[PlainMoE], None], named: str
) -> None:
    fast, plain = pair
    spoil(plain)
    with pytest.raises(NotEqualError, match=named):
        check_equal(fast, plain, SMALL)


def test_the_recipes_model_has_the_published_size() -> None:
    assert ours(Size(32, 16, 8)).count_parameters().total == 8_996_545


def test_models_are_built_alike_and_leave_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    one, other = ours(SMALL), ours(SMALL)
    assert torch.equal(one.head.weight, other.head.weight)
    assert torch.equal(torch.get_rng_state(), state)
