"""Each rate of dropout acts in its own place, keeps the mean there, and not in evaluation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from modern import MODERN
from torch import Tensor, nn

from makemoe.errors import UsageError
from makemoe.model.attention import CausalSelfAttention
from makemoe.model.dropout import Dropout
from makemoe.model.experts import Experts
from makemoe.model.transformer import MoETransformer

V, T = 11, 12
Build = Callable[..., MoETransformer]
NONE = {"dropout": 0.0, "attn_dropout": 0.0, "embd_dropout": 0.0, "expert_dropout": 0.0}
ALMOST_ALL = 1 - 1e-9
"""Rounded to 65,535 of 65,536."""


def rates(model: MoETransformer) -> dict[str, float]:
    """The rate of every dropout in a model, by its name there."""
    return {name: part.p for name, part in model.named_modules() if isinstance(part, Dropout)}


PLACES = {
    "embd_dropout": ["embd_dropout"],
    "attn_dropout": ["blocks.0.attention.attn_dropout", "blocks.1.attention.attn_dropout"],
    "expert_dropout": [
        "blocks.0.moe.experts.dropout",
        "blocks.1.moe.routed.experts.dropout",
        "blocks.1.moe.shared.experts.dropout",
    ],
}
ATTENDED = ["blocks.0.attention.dropout", "blocks.1.attention.dropout"]


@pytest.mark.parametrize("option", PLACES)
def test_a_rate_is_that_of_its_place_alone(build: Build, option: str) -> None:
    found = rates(build(**MODERN | NONE | {option: 0.25}))
    assert set(found) == {name for names in PLACES.values() for name in names} | set(ATTENDED)
    assert sorted(name for name, p in found.items() if p == 0.25) == sorted(PLACES[option])
    assert {p for name, p in found.items() if name not in PLACES[option]} == {0.0}


def test_dropout_is_the_rate_of_all_places_but_embeddings_unless_they_have_their_own(
    build: Build,
) -> None:
    found = rates(build(**MODERN, dropout=0.25))
    assert {name for name, p in found.items() if p == 0.0} == {"embd_dropout"}
    own = {"attn_dropout": 0.0, "expert_dropout": 0.5, "embd_dropout": 0.125}
    found = rates(build(**MODERN, dropout=0.25, **own))
    for option, names in PLACES.items():
        assert {found[name] for name in names} == {own[option]}
    assert {found[name] for name in ATTENDED} == {0.25}


@pytest.mark.parametrize("option", NONE)
def test_evaluation_drops_nothing_and_training_at_rate_0_neither(build: Build, option: str) -> None:
    model, ids = build(**MODERN | NONE | {option: 0.5}), torch.randint(V, (2, T))
    without = build(**MODERN | NONE)
    without.load_state_dict(model.state_dict())
    expected = without(ids)[0]
    assert torch.equal(model.eval()(ids)[0], without.eval()(ids)[0])
    torch.testing.assert_close(model(ids)[0], expected)
    assert not torch.allclose(model.train()(ids)[0], expected, atol=1e-3)


def output_of(model: MoETransformer, name: str, ids: Tensor) -> Tensor:
    """What a part of a model returns."""
    seen: list[Tensor] = []
    part = model.get_submodule(name)
    handle = part.register_forward_hook(
        lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    model(ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("embd_dropout", "embd_dropout"),
        ("attn_dropout", "blocks.0.attention"),
        ("dropout", "blocks.0.attention"),
        ("expert_dropout", "blocks.0.moe"),
        ("expert_dropout", "blocks.1.moe.shared"),
        ("expert_dropout", "blocks.1.moe"),
    ],
)
def test_the_mean_of_a_part_s_output_is_what_it_is_without_dropout(
    build: Build, option: str, name: str
) -> None:
    model, ids = build(**MODERN | NONE | {option: 0.3}), torch.randint(V, (1, T))
    if name.startswith("blocks.1"):
        model.blocks[0].eval()  # what the part gets is the same in every draw
    with torch.no_grad():
        draws = torch.stack([output_of(model, name, ids) for _ in range(400)])
        exact = output_of(model.eval(), name, ids)
    error = draws.std(0) / len(draws) ** 0.5
    assert (error > 0).double().mean() > 0.9
    # Each number within five standard errors of its mean.
    assert ((draws.mean(0) - exact).abs() <= 5 * error + 1e-6).all()


def zeroed(model: MoETransformer, kind: type[nn.Module]) -> MoETransformer:
    """The model with the outputs of all parts of a kind at zero."""
    for part in model.modules():
        if isinstance(part, kind):
            for layer in part.residual_outputs():
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize(
    ("option", "kind"), [("expert_dropout", Experts), ("dropout", CausalSelfAttention)]
)
def test_a_rate_of_almost_1_leaves_the_residual_stream_alone(
    build: Build, option: str, kind: type[nn.Module]
) -> None:
    model = build(**MODERN | NONE | {"expert_dropout": 0.0, option: ALMOST_ALL})
    ids = torch.randint(V, (2, T))
    dropped = model(ids)[0]
    torch.testing.assert_close(dropped, zeroed(model.eval(), kind)(ids)[0])


def test_embeddings_are_dropped_with_their_positions(build: Build) -> None:
    model, ids = build(embd_dropout=ALMOST_ALL), torch.randint(V, (2, T))
    x: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: x.append(args[0]))
    model(ids)
    assert (x[0] == 0).all()


def test_attention_weights_are_dropped_one_by_one(build: Build) -> None:
    """Values of one and no bias: the output is the sum of the weights that were kept."""
    layer = CausalSelfAttention(2, 1, 0.0, 0.5, bias=False)
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.proj.weight.copy_(torch.eye(2))
        layer.qkv.weight[4:] = torch.eye(2)
    kept = layer(torch.ones(400, 4, 2))[..., 0]
    for t in range(4):
        # Of t + 1 equal weights, each is 0 or 2 / (t + 1).
        counts = kept[:, t] * (t + 1) / 2
        torch.testing.assert_close(counts, counts.round())
        assert counts.mean().item() == pytest.approx((t + 1) / 2, rel=0.15)
        assert set(counts.round().int().tolist()) <= set(range(t + 2))


def test_each_expert_of_a_token_is_dropped_by_itself() -> None:
    """Outputs of ones: a dropped number of one expert takes away its weight alone."""
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 1, "n_embd": 4, "num_experts": 2}
    model = MoETransformer(V, block_size=T, top_k=2, expert_dropout=0.5, **sizes)
    moe = model.blocks[0].moe
    for parameter in moe.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(moe.experts.fc_out.bias)
    y, _ = moe(torch.randn(50, T, 4))
    # Equal gates: the sum of 2 halves, each 0 or 2.
    shares = [(y == value).double().mean().item() for value in (0.0, 1.0, 2.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("option", NONE)
def test_a_rate_that_is_no_share_is_refused(build: Build, option: str, rate: float) -> None:
    with pytest.raises(UsageError, match=rf"{option} {rate} is out of range: use 0 or more, less"):
        build(**{option: rate})
