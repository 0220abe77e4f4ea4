import math

import pytest
import torch
from torch import Tensor, nn

from makemoe.model.experts import MLPExperts, StackedLinear


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
