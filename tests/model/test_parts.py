"""The parts of a block: dense layers, shared experts, and parts of a user's own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import oracle
import pytest
import torch
from modern import ALL
from torch import Tensor
from torch.nn import functional as F

from makemoe.errors import UsageError
from makemoe.model.experts import MLPExperts
from makemoe.model.feed_forward import DenseLayer, FeedForward, SharedExperts
from makemoe.model.footprint import footprint
from makemoe.model.generate import Sampler, generate
from makemoe.model.init import GPT2Normal
from makemoe.model.moe import MoELayer
from makemoe.model.norm import Norm
from makemoe.model.positions import Positions, Turn
from makemoe.model.router import Router, Routing, TopKRouter
from makemoe.model.transformer import MoETransformer

V, T, D = 11, 12, 16
Build = Callable[..., MoETransformer]


class Scaled(Norm):
    """A norm without a shift."""

    def __init__(self, n_embd: int, power: int = 2) -> None:
        super().__init__()
        self.power = power
        self.scale_D = torch.nn.Parameter(torch.ones(n_embd))

    def forward(self, input: Tensor) -> Tensor:
        size = input.abs().pow(self.power).mean(-1, keepdim=True).pow(1 / self.power)
        return input / (size + 1e-6) * self.scale_D


class Rotary(Positions):
    """Each pair of a head's numbers is turned by an angle proportional to the position."""

    def __init__(self, block_size: int, n_embd: int, n_head: int) -> None:
        super().__init__()
        pairs = n_embd // n_head // 2
        angle_Td = torch.arange(block_size)[:, None] * 10.0 ** -torch.arange(pairs)
        self.register_buffer("angle_Td", angle_Td, persistent=False)

    def turn(self, positions_BT: Tensor) -> Turn:
        angle_B1Td = self.get_buffer("angle_Td")[positions_BT][:, None]
        cos, sin = angle_B1Td.cos(), angle_B1Td.sin()

        def turned(x_BHTd: Tensor) -> Tensor:
            a, b = x_BHTd.chunk(2, -1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

        return turned


class Half(FeedForward):
    """A layer of a user's own, without a router."""

    def __init__(self, router: Router, experts: MLPExperts, *settings: Any) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        return x_BTD * self.factor, None


def relative(make: Callable[[Tensor], Tensor], layer: torch.nn.Module) -> list[Tensor]:
    """An output, and its gradients."""
    x = torch.randn(2, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x.requires_grad_()
    y = make(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


# -- dense layers and shared experts


def test_a_dense_layer_equals_a_mixture_of_one_expert() -> None:
    experts = MLPExperts(1, D, 0.0, hidden=24).double()
    moe = MoELayer(TopKRouter(D, 1, 1).double(), experts)
    dense = DenseLayer(experts)
    torch.testing.assert_close(
        relative(lambda x: dense(x)[0], experts), relative(lambda x: moe(x)[0], experts)
    )


@pytest.mark.parametrize("count", [1, 3])
def test_a_dense_layer_is_the_sum_of_its_experts(count: int) -> None:
    experts = MLPExperts(count, D, 0.0, hidden=24, activation="gelu").double()
    dense = DenseLayer(experts)

    def by_hand(x: Tensor) -> Tensor:
        w_in, b_in = experts.fc_in.weight, experts.fc_in.bias
        w_out, b_out = experts.fc_out.weight, experts.fc_out.bias
        outputs = [F.gelu(x @ w_in[e] + b_in[e]) @ w_out[e] + b_out[e] for e in range(count)]
        return torch.stack(outputs).sum(0)

    torch.testing.assert_close(relative(lambda x: dense(x)[0], experts), relative(by_hand, experts))


def test_a_dense_layer_drops_its_output_in_training_only() -> None:
    dense = DenseLayer(MLPExperts(1, D, 0.5))
    assert (dense(torch.randn(64, 9, D))[0] == 0).double().mean() == pytest.approx(0.5, abs=0.03)
    assert (dense.eval()(torch.randn(64, 9, D))[0] != 0).all()


def test_shared_experts_are_added_to_the_routed_ones() -> None:
    routed = MoELayer(TopKRouter(D, 4, 2), MLPExperts(4, D, 0.0, hidden=24)).double()
    shared = MLPExperts(2, D, 0.0, hidden=24).double()
    layer = SharedExperts(routed, DenseLayer(shared))
    x = torch.randn(2, 5, D, dtype=torch.float64)
    y, routing = layer(x)
    assert routing is not None
    x_ND = x.flatten(0, 1)
    chosen = oracle.moe(x_ND, oracle.route(x_ND, routed.router), routed.experts)  # type: ignore[arg-type]
    everyone = Routing(torch.ones(10, 2), torch.tensor([[0, 1]] * 10), x_ND, x_ND)
    torch.testing.assert_close(y.flatten(0, 1), chosen + oracle.moe(x_ND, everyone, shared))


def test_layers_are_dense_where_the_user_says_so(build: Build) -> None:
    model = build(n_layer=4, dense_layers=[0, 2], dense_width=3, shared_experts=1)
    assert list(model.routers()) == [1, 3]
    kinds = [type(block.moe) for block in model.blocks]
    assert kinds == [DenseLayer, SharedExperts, DenseLayer, SharedExperts]
    assert model.blocks[0].moe.experts.num_experts == 3
    _, routings = model(torch.randint(V, (3, T)))
    assert len(routings) == 2


MODELS: dict[str, dict[str, Any]] = {
    "dense and shared": {"n_layer": 3, "dense_layers": [1], "dense_width": 2, "shared_experts": 2},
    "all dense": {"dense_layers": [0, 1]},
    "own norm and positions": {"norm": partial(Scaled, power=4), "positions": Rotary},
    "no positions": {"positions": lambda *sizes: Positions()},
    "own feed-forward": {"feed_forward": Half},
    **ALL,
}


@pytest.mark.parametrize("case", MODELS)
def test_sampling_with_a_cache_equals_sampling_without(build: Build, case: str) -> None:
    model = build(**MODELS[case]).eval()
    prompts, count = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 1]], 3 * T
    cached = generate(model, prompts, count, Sampler([1, 2, 3], temperature=0.7))
    for prompt, seed, new in zip(prompts, (1, 2, 3), cached, strict=True):
        assert new == oracle.generate(model, prompt, count, oracle.sampler(seed, 0.7))


@pytest.mark.parametrize("case", MODELS)
def test_later_tokens_do_not_change_earlier_logits(build: Build, case: str) -> None:
    model, ids = build(**MODELS[case]).eval(), torch.randint(V, (2, T))
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % V
    before, after = model(ids)[0], model(changed)[0]
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-5)
    assert not torch.allclose(after[:, 7:], before[:, 7:])


@pytest.mark.parametrize("case", MODELS)
def test_every_parameter_gets_a_gradient(build: Build, case: str) -> None:
    model = build(**MODELS[case])
    model(torch.randint(V, (2, T)))[0].square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("case", MODELS)
def test_the_footprint_is_that_of_the_model(case: str) -> None:
    model = MoETransformer(**{"vocab_size": V, "n_embd": 16, "n_layer": 2} | MODELS[case])
    size = footprint(model.architecture)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.buffers == sum(b.numel() for b in model.buffers())


# -- counts, initial weights, errors


def test_active_parameters_are_all_but_the_routed_experts_not_chosen(build: Build) -> None:
    hidden, E, K = 20, 5, 2
    model = build(
        n_layer=3, num_experts=E, top_k=K, dense_layers=[1], dense_width=2, shared_experts=3,
        experts=partial(MLPExperts, hidden=hidden),
    )  # fmt: skip
    expert = D * hidden + hidden + hidden * D + D
    total = sum(p.numel() for p in model.parameters())
    assert model.count_parameters() == (total, total - 2 * (E - K) * expert)
    dense = build(dense_layers=[0, 1]).count_parameters()
    assert dense.total == dense.active


def test_a_weight_used_twice_is_counted_once(build: Build) -> None:
    model = build()
    before = model.count_parameters().total
    model.head.weight = model.token_embedding.weight
    assert model.count_parameters().total == before - V * D


def test_gpt2_scales_the_outputs_of_dense_layers_and_shared_experts() -> None:
    sizes = {"n_layer": 3, "n_embd": 128, "num_experts": 4}
    model = MoETransformer(65, dense_layers=[0], shared_experts=1, init=GPT2Normal(), **sizes)
    outputs = {
        n: p for n, p in model.named_parameters() if n.endswith(("proj.weight", "fc_out.weight"))
    }
    assert len(outputs) == 2 + 3 + 3
    for name, p in outputs.items():
        assert p.std().item() == pytest.approx(0.02 / len(outputs) ** 0.5, rel=0.1), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense_layers": [0, 2]}, "dense_layers 2: no such layer; give numbers from 0 to 1"),
        ({"dense_layers": [-1]}, "dense_layers -1: no such layer"),
        ({"dense_width": 0}, "dense_width 0 is too small: use 1 or more"),
        ({"shared_experts": -1}, "shared_experts -1 is negative: use 0 or more"),
    ],
)
def test_sizes_of_dense_layers_are_checked(
    build: Build, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build(**options)


@pytest.mark.parametrize("size", ["shared_experts", "dense_width", "n_layer"])
def test_a_number_of_experts_beyond_memory_is_refused_with_one_that_fits(
    build: Build, size: str
) -> None:
    layers = {"n_layer": 3, "dense_layers": [2]}
    with pytest.raises(
        UsageError, match=rf"{size} 1000000000000 takes at least .*: {size} \d+ would fit"
    ):
        build(**layers | {size: 10**12})
