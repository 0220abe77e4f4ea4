import math
from typing import Any

import formulas
import pytest
import torch
from modern import MODERN
from torch import Tensor, nn
from torch.nn import functional as F

from makemoe.errors import UsageError
from makemoe.model.experts import StackedLinear
from makemoe.model.init import (
    FanInNormal,
    GPT2Normal,
    Initializer,
    KaimingNormal,
    XavierUniform,
    ZeroOutputs,
)
from makemoe.model.transformer import MoETransformer

IN, OUT = 300, 700


def weights(init: Initializer) -> list[Tensor]:
    layers = nn.ModuleList([nn.Linear(IN, OUT), StackedLinear(3, IN, OUT)])
    init.initialize(layers)
    # Per expert: its fan is that of one layer, not of the stack.
    return [layers[0].weight, *layers[1].weight]


def small_model(init: Initializer, n_layer: int = 3, **parts: Any) -> MoETransformer:
    sizes = {"n_layer": n_layer, "n_embd": 128, "num_experts": 4}
    return MoETransformer(65, block_size=64, init=init, **sizes, **parts)


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
        (FanInNormal(), 1 / math.sqrt(IN)),
        (FanInNormal(gain=2.5), 2.5 / math.sqrt(IN)),
        (ZeroOutputs(KaimingNormal()), math.sqrt(2 / IN)),
    ],
)
def test_std_is_the_closed_form(init: Initializer, std: float) -> None:
    for weight in weights(init):
        assert weight.std().item() == pytest.approx(std, rel=0.01)
        assert weight.mean().item() == pytest.approx(0, abs=4 * std / weight.numel() ** 0.5)


@pytest.mark.parametrize("init", [KaimingNormal(), GPT2Normal(), FanInNormal()])
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


def is_residual_output(name: str) -> bool:
    return ".proj." in name or ".fc_out." in name


@pytest.mark.parametrize("zero", [True, False])
def test_fan_in_normal_has_closed_forms_for_every_weight(zero: bool) -> None:
    model = small_model(
        FanInNormal(gain=0.5, zero_outputs=zero), **MODERN | {"tied_embeddings": False}
    )
    for name, p in model.named_parameters():
        if name.endswith("bias") or name == "head.weight" or (zero and is_residual_output(name)):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        elif "embedding" in name:
            assert p.std().item() == pytest.approx(1, rel=0.05), name
        else:
            # Stacked experts are (E, in, out), linear layers (out, in).
            fan_in = p.shape[1]
            assert p.std().item() == pytest.approx(0.5 / math.sqrt(fan_in), rel=0.1), name


@pytest.mark.parametrize("parts", [{}, MODERN | {"tied_embeddings": False}])
def test_fan_in_normal_begins_at_exactly_ln_V(parts: dict[str, Any]) -> None:
    model, ids = small_model(FanInNormal(), **parts), torch.randint(65, (4, 64))
    assert (model(ids)[0] == 0).all()
    assert first_loss(model) == pytest.approx(math.log(65), abs=1e-5)
    # It learns nevertheless: the gradient of the output layer is not zero.
    first = F.cross_entropy(model(ids)[0].flatten(0, 1), ids.flatten())
    (gradient,) = torch.autograd.grad(first, model.head.weight)
    assert gradient.abs().max() > 1e-4


def test_tied_embeddings_begin_with_the_logits_of_their_formula() -> None:
    """Blocks are the identity: each logit is a row's product with the token's normalised row."""
    model, ids = small_model(FanInNormal(), **MODERN), torch.randint(65, (40,))
    rows = model.token_embedding.weight.detach()
    assert rows.std().item() == pytest.approx(1 / 128, rel=0.05)
    # The mean square of a row is 1 / 128^2, of which RMSNorm's eps is a share.
    unit = torch.stack(
        [
            torch.tensor(
                formulas.rms_norm(row.double().numpy(), {"weight": torch.ones(128).numpy()})
            )
            for row in rows
        ]
    )
    logits = model(ids[None])[0][0]
    torch.testing.assert_close(logits.double(), unit[ids] @ rows.double().T, rtol=1e-4, atol=1e-5)
    assert logits.gather(1, ids[:, None]).mean().item() == pytest.approx(1, abs=0.1)
    assert first_loss(model) == pytest.approx(math.log(65), abs=0.1)


@pytest.mark.parametrize("scheme", [KaimingNormal(), XavierUniform(), GPT2Normal(), FanInNormal()])
def test_zero_outputs_is_another_scheme_whose_blocks_are_the_identity(scheme: Initializer) -> None:
    parts = {"dense_layers": [1], "shared_experts": 1}
    torch.manual_seed(4)
    expected = small_model(scheme, **parts)
    torch.manual_seed(4)
    model = small_model(ZeroOutputs(scheme), **parts)
    for name, p in model.named_parameters():
        if is_residual_output(name):
            assert (p == 0).all(), name
        else:
            assert torch.equal(p, expected.get_parameter(name)), name
    ids = torch.randint(65, (2, 64))
    x = model.token_embedding(ids) + model.position_embedding.weight
    assert torch.equal(model(ids)[0], model.head(model.norm(x)))


def test_every_weight_of_zero_outputs_learns_within_two_steps() -> None:
    model, ids = small_model(ZeroOutputs(GPT2Normal()), n_layer=1), torch.randint(65, (4, 64))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(ids)[0].flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []


@pytest.mark.parametrize("gain", [0.0, -1.0, math.inf, math.nan])
def test_a_gain_that_gives_no_weights_is_refused(gain: float) -> None:
    with pytest.raises(UsageError, match=f"gain {gain} is out of range: use a number above 0"):
        FanInNormal(gain)
