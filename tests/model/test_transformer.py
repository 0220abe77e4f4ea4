import math
from collections.abc import Callable

import oracle
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from makemoe.errors import UsageError
from makemoe.model.experts import MLPExperts
from makemoe.model.init import KaimingNormal
from makemoe.model.router import NoisyTopKRouter, TopKRouter
from makemoe.model.transformer import MoETransformer

V, T = 11, 12
Build = Callable[..., MoETransformer]


def some_ids(rows: int = 3) -> Tensor:
    return torch.randint(V, (rows, T))


def train(model: MoETransformer, steps: int = 5) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        ids = some_ids(8)
        logits, _ = model(ids[:, :-1])
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("router", [TopKRouter, NoisyTopKRouter])
def test_logits_equal_the_oracle(
    build: Build, router: type[TopKRouter], top_k: int, device: str
) -> None:
    model = build(router=router, top_k=top_k, dropout=0.3).eval().to(device)
    ids = some_ids().to(device)
    naive = torch.stack([oracle.transformer(row, model) for row in ids.tolist()])
    torch.testing.assert_close(model(ids)[0], naive, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["position", "weight"])
def test_changing_a_token_leaves_earlier_logits_unchanged(build: Build, order: str) -> None:
    model = build(
        router=NoisyTopKRouter, capacity_factor=1.0, drop_order=order, top_k=1, dropout=0.1
    )
    train(model)
    model.eval()
    ids = some_ids()
    logits, _ = model(ids)
    for t in range(T):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        after, _ = model(changed)
        torch.testing.assert_close(after[:, :t], logits[:, :t], rtol=0, atol=1e-5)
        assert ((after[:, t:] - logits[:, t:]).abs().amax((0, 2)) > 1e-4).all()


def test_a_prefix_has_the_logits_of_the_whole(build: Build) -> None:
    model, ids = build(capacity_factor=1.0).eval(), some_ids()
    whole, _ = model(ids)
    for t in range(1, T):
        torch.testing.assert_close(model(ids[:, :t])[0], whole[:, :t], rtol=1e-5, atol=1e-5)


def test_cached_logits_equal_uncached(build: Build, device: str) -> None:
    model, ids = build().eval().to(device), some_ids().to(device)
    cache, whole = model.new_cache(3), model(ids)[0]
    head, _ = model(ids[:, :4], cache, [0] * 3)
    steps = [model(ids[:, t : t + 1], cache, [t] * 3)[0] for t in range(4, T)]
    torch.testing.assert_close(torch.cat([head, *steps], 1), whole, rtol=1e-5, atol=1e-5)


def test_a_routing_is_returned_for_each_layer(build: Build) -> None:
    _, routings = build(n_layer=3, top_k=2)(some_ids())
    assert [r.experts_NK.shape for r in routings] == [(3 * T, 2)] * 3
    assert [r.logits_NE.shape for r in routings] == [(3 * T, 4)] * 3


def test_the_faithful_recipe_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = MoETransformer(
            vocab_size=65,
            block_size=32,
            n_layer=8,
            n_head=8,
            n_embd=128,
            num_experts=8,
            top_k=2,
            router=NoisyTopKRouter,
            experts=lambda *sizes: MLPExperts(*sizes, hidden=512),
            init=KaimingNormal(),
        )
    assert model.count_parameters() == (8_996_545, 2_674_369)


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_parameters_are_counted_by_arithmetic(build: Build, top_k: int) -> None:
    V, T, L, D, E, hidden = 13, 9, 3, 8, 5, 20
    model = build(
        vocab_size=V, block_size=T, n_layer=L, n_embd=D, num_experts=E, top_k=top_k,
        experts=lambda *sizes: MLPExperts(*sizes, hidden=hidden),
    )  # fmt: skip
    attention, norms, gate = 3 * D * D + D * D + D, 2 * 2 * D, D * E + E
    expert = D * hidden + hidden + hidden * D + D
    outside = V * D + T * D + 2 * D + D * V + V + L * (attention + norms + gate)
    assert model.count_parameters() == (outside + L * E * expert, outside + L * top_k * expert)


@pytest.mark.parametrize("router", [TopKRouter, NoisyTopKRouter])
@pytest.mark.parametrize("top_k", [1, 2])
def test_every_parameter_gets_a_gradient_though_experts_are_idle(
    build: Build, router: type[TopKRouter], top_k: int
) -> None:
    model, ids = build(router=router, top_k=top_k, capacity_factor=0.5), some_ids()
    with torch.no_grad():
        for block in model.blocks:
            block.moe.router.gate.bias[:2] += torch.tensor([300.0, 200.0])
    logits, routings = model(ids)
    logits.square().mean().backward()
    assert all((r.experts_NK < top_k).all() for r in routings)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_dropout_is_for_training_only(build: Build) -> None:
    model, ids = build(dropout=0.2), some_ids()
    assert not torch.equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert torch.equal(model(ids)[0], model(ids)[0])


def test_attn_dropout_is_dropout_unless_given(build: Build) -> None:
    def rates(**shares: float) -> tuple[float, float, float]:
        block = build(**shares).blocks[0]
        attention = block.attention
        return attention.attn_dropout.p, attention.dropout.p, block.moe.experts.dropout.p

    assert rates(dropout=0.2) == (0.2, 0.2, 0.2)
    assert rates(dropout=0.2, attn_dropout=0.0) == (0.0, 0.2, 0.2)


SIZES = ["vocab_size", "block_size", "n_layer", "n_head", "n_embd", "num_experts", "top_k"]


@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize("name", SIZES)
def test_sizes_must_be_positive(build: Build, name: str, size: int) -> None:
    with pytest.raises(UsageError, match=f"{name} {size} "):
        build(**{name: size})


@pytest.mark.parametrize("name", ["dropout", "attn_dropout"])
@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, math.nan])
def test_dropout_must_be_a_share(build: Build, name: str, share: float) -> None:
    with pytest.raises(UsageError, match=rf"{name} {share} is out of range"):
        build(**{name: share})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, "top_k 5 must be between 1 and num_experts 4"),
        ({"n_head": 3}, "n_embd 16 is not divisible by n_head 3"),
        ({"capacity_factor": 0.0}, "capacity_factor 0.0"),
    ],
)
def test_parts_must_fit_each_other(build: Build, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("num_experts", "top_k", "wrong"), [(4, 1, "top_k 1"), (3, 2, "num_experts 3")]
)
def test_a_router_of_other_sizes_than_the_model_is_refused(
    build: Build, num_experts: int, top_k: int, wrong: str
) -> None:
    def own_sizes(n_embd: int, *_: int) -> TopKRouter:
        return TopKRouter(n_embd, num_experts, top_k)

    with pytest.raises(UsageError, match=f"TopKRouter of layer 1 has {wrong}, but the model has "):
        build(router=own_sizes, dense_layers=[0])
