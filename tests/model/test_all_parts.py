"""Any newer part, and all of them at once: backends agree, and what a step keeps is counted."""

from typing import Any

import pytest
import torch
from modern import ALL, MODERN
from torch import Tensor

from makemoe.model.footprint import footprint
from makemoe.model.router import BiasedTopKRouter, NoisyTopKRouter, TopKRouter
from makemoe.model.transformer import MoETransformer

SIZES = {"vocab_size": 11, "block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}
DROPS = {"dropout": 0.3, "embd_dropout": 0.2}


def model(device: str, dtype: torch.dtype, parts: dict[str, Any]) -> MoETransformer:
    torch.manual_seed(2)
    built = MoETransformer(**SIZES | {"num_experts": 4} | parts)
    for p in built.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return built.to(device, dtype)


def results(net: MoETransformer) -> list[Tensor]:
    """Logits and every gradient of a step with random numbers of its own."""
    torch.manual_seed(3)
    ids_BT = torch.randint(11, (3, 12)).to(net.head.weight.device)
    logits, _ = net(ids_BT)
    return [logits, *torch.autograd.grad(logits.logsumexp(-1).sum(), list(net.parameters()))]


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
@pytest.mark.parametrize("backend", ["padded", "auto"])
@pytest.mark.parametrize("router", [TopKRouter, NoisyTopKRouter, BiasedTopKRouter])
def test_backends_of_any_precision_agree_to_1e_9(
    router: Any, backend: str, capacity_factor: float | None, device: str
) -> None:
    parts = MODERN | DROPS | {"router": router, "capacity_factor": capacity_factor}
    one, other = (
        results(model(device, torch.float64, parts | {"dispatch": name}))
        for name in ("loop", backend)
    )
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["grouped", "rounded"])
@pytest.mark.parametrize("case", ALL)
def test_backends_without_float64_agree_with_it_to_1e_4(backend: str, case: str) -> None:
    parts = ALL[case] | {"dropout": 0.0}
    exact = results(model("cpu", torch.float64, parts | {"dispatch": "loop"}))
    narrow = results(model("cpu", torch.float32, parts | {"dispatch": backend}))
    torch.testing.assert_close([t.double() for t in narrow], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ALL)
def test_any_part_works_under_autocast(case: str, precision: torch.dtype) -> None:
    net = model("cpu", torch.float32, ALL[case] | DROPS | {"init": None})
    with torch.autocast("cpu", precision):
        outcome = results(net)
    assert all(t.isfinite().all() for t in outcome)
    assert any(t.abs().max() > 0 for t in outcome[1:])


@pytest.mark.parametrize("drops", [{}, DROPS], ids=["dropout 0", "dropout"])
@pytest.mark.parametrize("case", ALL)
def test_a_step_keeps_what_was_counted_and_less_than_twice_that(
    case: str, drops: dict[str, float]
) -> None:
    net = model("cpu", torch.float32, ALL[case] | drops | {"dispatch": "loop"})
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        if t.is_floating_point() and t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    ids_BT = torch.randint(11, (5, 12))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        net(ids_BT)
    numbers = sum(t.untyped_storage().nbytes() // t.element_size() for t in kept.values())
    counted = footprint(net.architecture).kept * ids_BT.numel()
    assert counted <= numbers < 2 * counted
