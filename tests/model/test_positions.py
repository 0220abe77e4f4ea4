"""Positions: learned vectors that are added, rotations of queries and keys, and none."""

from collections.abc import Callable, Iterator

import formulas
import numpy as np
import pytest
import torch
from torch import Tensor

from makemoe.errors import UsageError
from makemoe.model.attention import CausalSelfAttention, LayerCache, Place
from makemoe.model.norm import RMSNorm
from makemoe.model.positions import LearnedPositions, Positions, RotaryPositions
from makemoe.model.transformer import MoETransformer

Build = Callable[..., MoETransformer]
B, T, D, H = 3, 9, 12, 2
SIZE = D // H
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def attention() -> CausalSelfAttention:
    layer = CausalSelfAttention(D, H, 0.0, 0.0, qk_norm=RMSNorm)
    for part in (layer.norm_q, layer.norm_k):
        torch.nn.init.uniform_(part.weight, 0.5, 2.0)
    return layer


def by_formula(x_TD: Tensor, layer: CausalSelfAttention, base: float, start: int = 0) -> Tensor:
    weights = formulas.weights_of(layer)
    return torch.tensor(formulas.attention(x_TD.numpy(), weights, H, base, start))


def after(rotary: RotaryPositions, starts: list[int], length: int) -> Place:
    place = Place.after(starts, length, T, CPU)
    return place._replace(turn=rotary.turn(place.positions_BT))


# -- rotary positions


@pytest.mark.parametrize("base", [3.0, 10_000.0])
def test_vectors_are_turned_by_explicit_matrices(base: float) -> None:
    positions_BT = torch.tensor([[0, 1, 5], [8, 2, 2]])
    x_BHTd = torch.randn(2, H, 3, SIZE)
    turned = RotaryPositions(T, D, H, base).turn(positions_BT)(x_BHTd)
    for (b, h, t), at in np.ndenumerate(np.broadcast_to(positions_BT[:, None], (2, H, 3))):
        matrix = torch.tensor(formulas.rotation(SIZE, int(at), base))
        torch.testing.assert_close(turned[b, h, t], matrix @ x_BHTd[b, h, t])


def test_turning_keeps_lengths_and_position_0_as_it_is() -> None:
    x = torch.randn(1, H, T, SIZE)
    turned = RotaryPositions(T, D, H).turn(torch.arange(T)[None])(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert not torch.isclose(turned[:, :, 1:], x[:, :, 1:]).any()


def test_products_depend_on_the_distance_alone() -> None:
    rotary, (q, k) = RotaryPositions(100, D, H), torch.randn(2, 1, H, 1, SIZE)

    def product(at: int, other: int) -> Tensor:
        def turned(x: Tensor, position: int) -> Tensor:
            return rotary.turn(torch.tensor([[position]]))(x)

        return (turned(q, at) * turned(k, other)).sum(-1)

    for distance in (0, 1, 40):
        near = product(distance, 0)
        for start in (1, 7, 59):
            torch.testing.assert_close(product(start + distance, start), near)
    assert not torch.isclose(product(1, 0), product(0, 1)).any()


def test_attention_with_rotary_positions_is_its_formula_wherever_it_starts() -> None:
    layer, rotary, x = attention(), RotaryPositions(T + 50, D, H, 100.0), torch.randn(1, T, D)
    expected = by_formula(x[0], layer, 100.0)
    for start in (0, 50):
        place = Place.whole(T, CPU)
        turned = layer(x, None, place._replace(turn=rotary.turn(place.positions_BT + start)))
        torch.testing.assert_close(turned[0], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(by_formula(x[0], layer, 100.0, start), expected)


def test_queries_and_keys_are_normalised_before_they_are_turned() -> None:
    """The gains of the norms differ, so the other order gives another result."""
    layer, rotary, x = attention(), RotaryPositions(T, D, H), torch.randn(1, T, D)
    place = Place.whole(T, CPU)
    turn = rotary.turn(place.positions_BT)
    expected = layer(x, None, place._replace(turn=turn))
    torch.testing.assert_close(expected[0], by_formula(x[0], layer, 10_000.0))
    q, k, v = (x @ layer.qkv.weight.T).view(1, T, 3, H, SIZE).permute(2, 0, 3, 1, 4)
    other_order = layer.attend(layer.norm_q(turn(q)), layer.norm_k(turn(k)), v)
    other = layer.proj(other_order.transpose(1, 2).reshape(1, T, D))
    assert (other[:, 1:] - expected[:, 1:]).abs().amax() > 1e-3


def test_cached_steps_have_the_positions_of_their_rows() -> None:
    """Rows of several lengths, then one token per row and step, each at a position of its own."""
    layer, rotary = attention(), RotaryPositions(T, D, H)
    x, lengths = torch.randn(B, T, D), [1, 4, 6]
    cache = LayerCache(torch.randn(B, H, T, SIZE), torch.randn(B, H, T, SIZE))
    layer(x[:, :6], cache, after(rotary, [0] * B, 6))
    for step in range(3):
        at = [length + step for length in lengths]
        new = torch.stack([x[b, at[b]] for b in range(B)])[:, None]
        out = layer(new, cache, after(rotary, at, 1))
        for b in range(B):
            expected = by_formula(x[b, : at[b] + 1], layer, 10_000.0)[-1]
            torch.testing.assert_close(out[b, 0], expected, rtol=1e-9, atol=1e-9)


def test_several_cached_tokens_at_once_have_one_position_each() -> None:
    layer, rotary, x = attention(), RotaryPositions(T, D, H), torch.randn(B, T, D)
    cache = LayerCache(torch.randn(B, H, T, SIZE), torch.randn(B, H, T, SIZE))
    layer(x[:, :4], cache, after(rotary, [0] * B, 4))
    out = layer(x[:, 4:], cache, after(rotary, [4] * B, T - 4))
    for b in range(B):
        torch.testing.assert_close(out[b], by_formula(x[b], layer, 10_000.0)[4:])


def test_rotary_positions_have_no_weights_and_none_in_a_checkpoint(build: Build) -> None:
    model = build(positions=RotaryPositions)
    assert list(model.position_embedding.parameters()) == []
    assert not [name for name in model.state_dict() if "position" in name]


def test_a_base_may_change_where_the_weights_stay(build: Build) -> None:
    one, other = (build(positions=lambda *s, b=b: RotaryPositions(*s, b)) for b in (1e4, 10.0))
    other.load_state_dict(one.state_dict())
    ids = torch.randint(11, (1, 12))
    assert not torch.allclose(one.eval()(ids)[0], other.eval()(ids)[0])


def test_angles_are_as_precise_as_the_dtype_that_a_model_is_given_later() -> None:
    torch.set_default_dtype(torch.float32)
    later = RotaryPositions(T, D, H).bfloat16().double()
    angles = np.arange(T)[:, None] * 10_000.0 ** (-2 * np.arange(SIZE // 2) / SIZE)
    np.testing.assert_allclose(later.cos_TP, np.cos(angles), atol=1e-15)
    np.testing.assert_allclose(later.sin_TP, np.sin(angles), atol=1e-15)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_narrow_queries_and_keys_are_turned_in_the_width_of_the_angles(
    precision: torch.dtype,
) -> None:
    positions_BT, x = torch.tensor([[T - 1]]), torch.randn(1, H, 1, SIZE).to(precision)
    turned = RotaryPositions(T, D, H).turn(positions_BT)(x)
    assert turned.dtype == precision
    exact = x.double() @ torch.tensor(formulas.rotation(SIZE, T - 1, 10_000.0)).T
    torch.testing.assert_close(turned, exact.to(precision), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("n_embd", "n_head", "wider"), [(6, 2, 8), (3, 3, 6), (15, 3, 18), (1, 1, 2)]
)
def test_heads_that_have_no_pairs_are_refused_with_a_width_that_has(
    n_embd: int, n_head: int, wider: int
) -> None:
    words = rf"RotaryPositions: n_embd {n_embd} / n_head {n_head} = .* use n_embd {wider}, or"
    with pytest.raises(UsageError, match=words):
        RotaryPositions(T, n_embd, n_head)
    assert wider % n_head == 0
    RotaryPositions(T, wider, n_head)


@pytest.mark.parametrize(("share", "turned"), [(1 / 3, 2), (0.7, 4), (1.0, 6)])
def test_a_share_of_a_head_is_turned_and_the_rest_of_it_stays(share: float, turned: int) -> None:
    x = torch.randn(1, H, 1, SIZE)
    got = RotaryPositions(T, D, H, 30.0, share).turn(torch.tensor([[5]]))(x)
    matrix = torch.tensor(formulas.rotation(SIZE, 5, 30.0, turned))
    torch.testing.assert_close(got, x @ matrix.T)
    assert torch.equal(got[..., turned:], x[..., turned:])
    assert not torch.isclose(got[..., :turned], x[..., :turned]).any()


@pytest.mark.parametrize(
    ("share", "words"),
    [
        *((share, "out of range: use more than 0, at most 1") for share in (0.0, -1.0, 1.1)),
        (float("nan"), "out of range: use more than 0, at most 1"),
        (0.5, "share 0.5 of a head of 6 numbers is 3, which cannot be turned in pairs"),
        (0.1, "share 0.1 of a head of 6 numbers is 0, which cannot be turned in pairs"),
    ],
)
def test_a_share_without_pairs_is_refused(share: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RotaryPositions(T, D, H, 30.0, share)


@pytest.mark.parametrize("base", [1.0, 0.0, -3.0, float("inf"), float("nan")])
def test_a_base_that_turns_nothing_apart_is_refused(base: float) -> None:
    with pytest.raises(UsageError, match=rf"base {base} is out of range: use more than 1"):
        RotaryPositions(T, D, H, base)


# -- learned positions


def test_learned_positions_are_rows_that_are_added() -> None:
    learned, x = LearnedPositions(T, D, H), torch.randn(2, 3, D)
    positions_BT = torch.tensor([[4, 5, 6], [0, 1, 2]])
    rows = learned.weight.detach()
    expected = torch.stack([x[0] + rows[4:7], x[1] + rows[:3]])
    torch.testing.assert_close(learned.add(x, positions_BT), expected)
    torch.testing.assert_close(learned.add(x, positions_BT[1:]), x + rows[:3])
    assert learned.turn(positions_BT) is None


# -- no positions


def test_without_positions_the_last_of_one_layer_sees_a_set(build: Build) -> None:
    model = build(positions=Positions, n_layer=1).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5], [1, 4, 1, 3, 5]])
    first, second = model(ids)[0][:, -1]
    torch.testing.assert_close(first, second)
    ids[1, -2:] = ids[1, [-1, -2]]
    assert not torch.allclose(*model(ids)[0][:, -1])
