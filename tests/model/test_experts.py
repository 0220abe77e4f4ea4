import math
from functools import partial
from typing import Any

import formulas
import pytest
import torch
from torch import Tensor, nn

from makemoe.errors import UsageError
from makemoe.model.experts import Experts, GatedExperts, MLPExperts, StackedLinear

KINDS = pytest.mark.parametrize("kind", [MLPExperts, GatedExperts])


def one_by_one(x_ECI: Tensor, layer: StackedLinear) -> Tensor:
    biases = [0] * len(x_ECI) if layer.bias is None else layer.bias
    return torch.stack([x @ layer.weight[e] + biases[e] for e, x in enumerate(x_ECI)])


@pytest.mark.parametrize(
    ("name", "activation"), [("relu", nn.ReLU()), ("gelu", nn.GELU()), ("silu", nn.SiLU())]
)
def test_each_expert_is_a_two_layer_perceptron(name: str, activation: nn.Module) -> None:
    experts, x = MLPExperts(3, 4, 0.0, hidden=5, activation=name), torch.randn(3, 7, 4)
    for e, y in enumerate(experts(x, one_by_one)):
        first, second = nn.Linear(4, 5), nn.Linear(5, 4)
        for dense, stacked in ((first, experts.fc_in), (second, experts.fc_out)):
            dense.weight.data, dense.bias.data = stacked.weight[e].t(), stacked.bias[e]
        torch.testing.assert_close(y, second(activation(first(x[e]))))


def test_hidden_width_is_four_times_the_embedding_unless_given() -> None:
    assert MLPExperts(2, 6, 0.0).fc_in.weight.shape == (2, 6, 24)
    assert MLPExperts(2, 6, 0.0, hidden=10).fc_out.weight.shape == (2, 10, 6)


def test_the_formula_draws_no_dropout_which_is_left_to_dispatch() -> None:
    experts, x = MLPExperts(2, 16, 0.25), torch.randn(2, 500, 16)
    assert torch.equal(experts(x, one_by_one), experts.eval()(x, one_by_one))


def test_experts_without_biases_have_weights_only() -> None:
    with_biases, experts = MLPExperts(3, 4, 0.0), MLPExperts(3, 4, 0.0, bias=False)
    assert list(experts.state_dict()) == ["fc_in.weight", "fc_out.weight"]
    assert "bias=False" in repr(experts)
    assert "bias" not in repr(with_biases)
    for name in ("fc_in", "fc_out"):
        getattr(with_biases, name).weight.data = getattr(experts, name).weight.data
        getattr(with_biases, name).bias.data.zero_()
    x = torch.randn(3, 7, 4)
    torch.testing.assert_close(experts(x, one_by_one), with_biases(x, one_by_one))


def test_begins_as_a_linear_layer_does() -> None:
    layer = StackedLinear(4, 100, 200)
    for p in layer.parameters():
        assert p.abs().max() <= 0.1
        assert p.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


def test_residual_outputs_are_the_second_layers() -> None:
    experts = MLPExperts(2, 4, 0.0)
    assert experts.residual_outputs() == [experts.fc_out]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", sorted(formulas.ACTIVATIONS))
@KINDS
def test_each_expert_is_its_formula(kind: type[Any], activation: str, bias: bool) -> None:
    experts = kind(3, 4, 0.0, hidden=5, activation=activation, bias=bias).double()
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    before, weights = x.clone(), formulas.weights_of(experts)
    y = experts(x, one_by_one)
    for e in range(3):
        for row, out in zip(x[e], y[e], strict=True):
            expected = torch.tensor(formulas.expert(row.numpy(), weights, e, activation))
            torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


def test_squared_relu_has_the_gradient_2_max_x_0() -> None:
    experts = MLPExperts(1, 1, 0.0, hidden=1, activation="squared_relu", bias=False).double()
    for layer in (experts.fc_in, experts.fc_out):
        torch.nn.init.ones_(layer.weight)
    x = torch.tensor([[[-2.0], [0.0], [3.0]]], dtype=torch.float64, requires_grad=True)
    y = experts(x, one_by_one)
    assert y.flatten().tolist() == [0.0, 0.0, 9.0]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.flatten().tolist() == [0.0, 0.0, 6.0]


@pytest.mark.parametrize(("n_embd", "hidden"), [(128, 352), (96, 256), (6, 16), (1, 16)])
def test_a_gated_expert_is_about_as_large_as_one_without_a_gate(n_embd: int, hidden: int) -> None:
    gated = GatedExperts(1, n_embd, 0.0)
    assert gated.hidden == hidden
    assert gated.fc_gate.weight.shape == gated.fc_in.weight.shape == (1, n_embd, hidden)
    assert hidden % 16 == 0
    assert 0 <= hidden - 8 / 3 * n_embd < 16


@KINDS
@pytest.mark.parametrize("hidden", [1, 3, 37])
def test_experts_may_have_any_width(kind: type[Any], hidden: int) -> None:
    experts = kind(2, 6, 0.0, hidden=hidden)
    assert {layer.out_features for layer in experts.children() if hasattr(layer, "bias")} == {
        *(hidden, 6)
    }
    assert experts(torch.randn(2, 5, 6), one_by_one).shape == (2, 5, 6)


@pytest.mark.parametrize(
    ("kind", "bias", "names"),
    [
        (partial(MLPExperts, bias=True), 5 * 3 + 3 * 5 + 3 + 5, {"fc_in", "fc_out"}),
        (partial(MLPExperts, bias=False), 5 * 3 + 3 * 5, {"fc_in", "fc_out"}),
        (partial(GatedExperts, bias=True), 3 * 5 * 3 + 3 + 3 + 5, {"fc_in", "fc_out", "fc_gate"}),
        (partial(GatedExperts, bias=False), 3 * 5 * 3, {"fc_in", "fc_out", "fc_gate"}),
    ],
)
def test_weights_of_an_expert_are_counted_by_hand(kind: Any, bias: int, names: set[str]) -> None:
    experts: Experts = kind(4, 5, 0.0, hidden=3)
    assert sum(p.numel() for p in experts.parameters()) == 4 * bias
    assert {name.partition(".")[0] for name in experts.state_dict()} == names
    assert experts.residual_outputs() == [experts.fc_out]


@KINDS
@pytest.mark.parametrize(
    ("hidden", "words"),
    [(-1, "hidden -1 is negative"), (2.5, "hidden 2.5 is not an"), (True, "hidden True is not")],
)
def test_a_width_that_no_expert_has_is_refused(kind: type[Any], hidden: Any, words: str) -> None:
    with pytest.raises(UsageError, match=f"{words}.*: use 1 or more, or 0 for .* n_embd"):
        kind(2, 6, 0.0, hidden=hidden)


@KINDS
def test_an_unknown_activation_is_refused_with_those_there_are(kind: type[Any]) -> None:
    words = "activation 'relu6' is unknown: use relu, squared_relu, gelu, silu"
    with pytest.raises(UsageError, match=words):
        kind(2, 6, 0.0, activation="relu6")
