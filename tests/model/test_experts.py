import math

import pytest
import torch
from torch import Tensor, nn

from makemoe.model.experts import MLPExperts, StackedLinear


def one_by_one(x_ECI: Tensor, layer: StackedLinear) -> Tensor:
    return torch.stack([x @ layer.weight[e] + layer.bias[e] for e, x in enumerate(x_ECI)])


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


def test_dropout_falls_on_the_output_in_training_only() -> None:
    experts, x = MLPExperts(2, 16, 0.25), torch.randn(2, 500, 16)
    y, kept = experts(x, one_by_one), experts.eval()(x, one_by_one)
    assert (y == 0).double().mean() == pytest.approx(0.25, abs=0.02)
    assert (kept != 0).all()
    torch.testing.assert_close(y[y != 0], (kept / 0.75)[y != 0])


def test_begins_as_a_linear_layer_does() -> None:
    layer = StackedLinear(4, 100, 200)
    for p in layer.parameters():
        assert p.abs().max() <= 0.1
        assert p.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


def test_residual_outputs_are_the_second_layers() -> None:
    experts = MLPExperts(2, 4, 0.0)
    assert experts.residual_outputs() == [experts.fc_out]
