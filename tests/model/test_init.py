import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemoe.model.experts import StackedLinear
from makemoe.model.init import GPT2Normal, Initializer, KaimingNormal, XavierUniform
from makemoe.model.transformer import MoETransformer

IN, OUT = 300, 700


def weights(init: Initializer) -> list[Tensor]:
    layers = nn.ModuleList([nn.Linear(IN, OUT), StackedLinear(3, IN, OUT)])
    init.initialize(layers)
    # Per expert: its fan is that of one layer, not of the stack.
    return [layers[0].weight, *layers[1].weight]


def small_model(init: Initializer, n_layer: int = 3) -> MoETransformer:
    sizes = {"n_layer": n_layer, "n_embd": 128, "num_experts": 4}
    return MoETransformer(65, block_size=64, init=init, **sizes)


def first_loss(model: MoETransformer) -> float:
    ids = torch.randint(65, (16, 65))
    with torch.no_grad():
        logits, _ = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


@pytest.mark.parametrize(
    ("init", "std"),
    [
        (KaimingNormal(), math.sqrt(2 / IN)),
        (XavierUniform(), math.sqrt(2 / (IN + OUT))),
        (GPT2Normal(), 0.02),
        (GPT2Normal(0.05), 0.05),
    ],
)
def test_std_is_the_closed_form(init: Initializer, std: float) -> None:
    for weight in weights(init):
        assert weight.std().item() == pytest.approx(std, rel=0.01)
        assert weight.mean().item() == pytest.approx(0, abs=4 * std / weight.numel() ** 0.5)


@pytest.mark.parametrize("init", [KaimingNormal(), GPT2Normal()])
def test_normal_schemes_are_normal(init: Initializer) -> None:
    for weight in weights(init):
        within = (weight.abs() < weight.std()).double().mean().item()
        assert within == pytest.approx(0.6827, abs=0.005)


def test_xavier_is_uniform_up_to_its_bound() -> None:
    bound = math.sqrt(6 / (IN + OUT))
    for weight in weights(XavierUniform()):
        assert 0.999 * bound < weight.abs().max() <= bound
        assert (weight.abs() < bound / 2).double().mean().item() == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("init", [KaimingNormal(), XavierUniform()])
def test_biases_and_embeddings_are_left_alone(init: Initializer) -> None:
    model = small_model(init)
    before = {n: p.clone() for n, p in model.named_parameters()}
    init.initialize(model)
    kept = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    left = {n for n in before if n.endswith("bias") or "norm" in n or "embedding" in n}
    assert kept == left


@pytest.mark.parametrize("n_layer", [1, 4])
def test_gpt2_scales_residual_outputs_and_zeroes_biases(n_layer: int) -> None:
    for name, p in small_model(GPT2Normal(), n_layer).named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            residual = "proj" in name or "fc_out" in name
            std = 0.02 / math.sqrt(2 * n_layer) if residual else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.1), name


def test_gpt2_is_the_default() -> None:
    torch.manual_seed(0)
    default = MoETransformer(65, n_layer=1)
    torch.manual_seed(0)
    chosen = MoETransformer(65, n_layer=1, init=GPT2Normal())
    torch.testing.assert_close(default.state_dict(), chosen.state_dict(), rtol=0, atol=0)


def test_gpt2_begins_at_ln_V_and_kaiming_well_above() -> None:
    assert first_loss(small_model(GPT2Normal())) == pytest.approx(math.log(65), abs=0.1)
    assert first_loss(small_model(KaimingNormal())) > math.log(65) + 0.5
