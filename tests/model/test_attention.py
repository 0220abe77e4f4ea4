import copy

import oracle
import pytest
import torch
from torch.nn import functional as F

from makemoe.errors import UsageError
from makemoe.model.attention import CausalSelfAttention, LayerCache, Place

B, T, D, H = 3, 7, 16, 4


@pytest.fixture
def layer() -> CausalSelfAttention:
    return CausalSelfAttention(D, H, dropout=0.0, attn_dropout=0.0)


def place(starts: list[int], length: int) -> Place:
    return Place.after(starts, length, T, torch.device("cpu"))


def empty_cache(slots: int = T) -> LayerCache:
    # What a stale slot holds must not matter.
    return LayerCache(torch.randn(B, H, slots, D // H), torch.randn(B, H, slots, D // H))


def assert_equals_the_oracle(layer: CausalSelfAttention, x: torch.Tensor) -> None:
    """Compare outputs, and the gradients of the input and of every weight."""
    x.requires_grad_()
    naive = torch.stack([oracle.attention(row, layer) for row in x])
    upstream, leaves = torch.randn_like(naive), [x, *layer.parameters()]
    torch.testing.assert_close(layer(x), naive)
    torch.testing.assert_close(
        torch.autograd.grad(layer(x), leaves, upstream),
        torch.autograd.grad(naive, leaves, upstream),
    )


@pytest.mark.parametrize("n_head", [1, 2, 4, 16])
def test_equals_the_oracle_in_outputs_and_gradients(n_head: int) -> None:
    layer = CausalSelfAttention(D, n_head, 0.0, 0.0).double()
    assert_equals_the_oracle(layer, torch.randn(B, T, D, dtype=torch.float64))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_attention_with_dropout_equals_the_oracle_where_nothing_is_dropped(length: int) -> None:
    # So small a share drops nothing, but takes the path of its own that dropout has on a CPU.
    layer = CausalSelfAttention(D, H, dropout=0.0, attn_dropout=1e-9).double()
    assert_equals_the_oracle(layer, torch.randn(2, length, D, dtype=torch.float64))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_training_in_bf16_equals_the_oracle_in_float64_to_the_accuracy_of_bf16(length: int) -> None:
    layer = CausalSelfAttention(D, H, dropout=0.0, attn_dropout=0.0).bfloat16()
    x = torch.randn(2, length, D, dtype=torch.bfloat16, requires_grad=True)
    exact, x_exact = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    naive = torch.stack([oracle.attention(row, exact) for row in x_exact])
    upstream = torch.randn_like(x)
    found = torch.autograd.grad(layer(x), [x, *layer.parameters()], upstream)
    truth = torch.autograd.grad(naive, [x_exact, *exact.parameters()], upstream.double())
    for ours, theirs in zip((layer(x), *found), (naive, *truth), strict=True):
        assert (ours - theirs).norm() < 2 * torch.finfo(torch.bfloat16).eps * theirs.norm()


@pytest.mark.parametrize(
    ("dtype", "training", "fused"),
    [
        (torch.float32, True, True),
        (torch.float32, False, True),
        (torch.float16, True, True),
        (torch.bfloat16, False, True),
        (torch.bfloat16, True, False),
    ],
)
def test_on_a_cpu_attention_is_fused_except_in_training_in_bf16(
    dtype: torch.dtype, training: bool, fused: bool
) -> None:
    layer = CausalSelfAttention(D, H, dropout=0.0, attn_dropout=0.0).train(training)
    q, k, v = torch.randn(3, B, H, 2 * T, D // H, dtype=dtype).unbind()
    torchs = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.equal(layer.attend(q, k, v), torchs) == fused
    torch.testing.assert_close(layer.attend(q, k, v), torchs, atol=0.05, rtol=0.05)


def test_cached_steps_equal_uncached(layer: CausalSelfAttention) -> None:
    x, cache = torch.randn(B, T, D), empty_cache()
    first = layer(x[:, :3], cache, place([0] * B, 3))
    steps = [layer(x[:, t : t + 1], cache, place([t] * B, 1)) for t in range(3, T)]
    torch.testing.assert_close(torch.cat([first, *steps], 1), layer(x))


def test_rows_may_stand_at_different_positions(layer: CausalSelfAttention) -> None:
    x, cache, lengths = torch.randn(B, T, D), empty_cache(), [1, 4, 6]
    layer(x, cache, place([0] * B, T))
    # A new token at each row's own position replaces what stood there.
    new = torch.randn(B, 1, D)
    stepped = layer(new, cache, place(lengths, 1))
    for b, length in enumerate(lengths):
        whole = torch.cat([x[b, :length], new[b]])
        torch.testing.assert_close(stepped[b, 0], oracle.attention(whole, layer)[-1])


def test_only_positions_that_some_row_has_reached_are_attended_to(
    layer: CausalSelfAttention,
) -> None:
    starts, S = [2, 5], 4096
    cache = layer.new_cache(2, S)
    for kept in cache:
        kept[:, :, max(starts) + 1 :] = torch.nan
    place = Place.after(starts, 1, S, torch.device("cpu"))
    with torch.no_grad():
        y_BTD = layer(torch.randn(2, 1, layer.qkv.in_features), cache, place)
    assert y_BTD.isfinite().all()


def test_dropout_on_weights_is_for_training_only() -> None:
    layer = CausalSelfAttention(D, H, dropout=0.0, attn_dropout=0.5)
    x = torch.randn(B, T, D)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x)[0], oracle.attention(x[0], layer))


def test_dropout_on_the_output_is_for_training_only() -> None:
    layer = CausalSelfAttention(D, H, dropout=0.5, attn_dropout=0.0)
    zeros = (layer(torch.randn(64, T, D)) == 0).double().mean()
    assert zeros == pytest.approx(0.5, abs=0.03)
    assert (layer.eval()(torch.randn(64, T, D)) != 0).all()


def test_only_the_output_projection_has_a_bias(layer: CausalSelfAttention) -> None:
    assert layer.qkv.bias is None
    assert layer.proj.bias is not None


def test_head_count_must_divide_the_width() -> None:
    with pytest.raises(UsageError, match="n_embd 16 is not divisible by n_head 5: use n_embd 20"):
        CausalSelfAttention(16, 5, 0.0, 0.0)
