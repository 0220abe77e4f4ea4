from collections.abc import Callable

import pytest
import torch

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


def scale_head(plain: PlainMoE) -> None:
    plain.head.weight.data *= 1.01


def stop_a_gradient(plain: PlainMoE) -> None:
    plain.blocks[0].moe.register_forward_hook(lambda *args: args[-1].detach())


@pytest.mark.parametrize(
    ("spoil", "named"), [(scale_head, "logits"), (stop_a_gradient, "gradient of")]
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
