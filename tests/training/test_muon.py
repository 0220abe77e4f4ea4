"""Muon against torch's: its Muon for matrices, its AdamW for other weights."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import _muon as torch_muon

from makemoe.training import muon
from makemoe.training.muon import ADAMW, MUON, Muon
from makemoe.training.orthogonal import by_gram

LR, DECAY, STEPS = 0.1, 0.3, 4


def parameters(*shapes: tuple[int, ...], **options: Any) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, **options)) for shape in shapes]


def copies(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params]


def train(optimizer: torch.optim.Optimizer, *others: torch.optim.Optimizer, steps: int) -> None:
    """Steps of optimizers of as many parameters, with the same gradients, always different ones."""
    optimizers = (optimizer, *others)
    every = [[p for g in o.param_groups for p in g["params"]] for o in optimizers]
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for same in zip(*every, strict=True):
            grad = torch.randn(same[0].shape, generator=generator, dtype=torch.float64)
            for p in same:
                p.grad = grad.to(p.dtype)
        for one in optimizers:
            one.step()


def of_matrices(params: list[nn.Parameter], **settings: Any) -> Muon:
    return Muon(
        [{"params": params, "method": MUON}], **{"lr": LR, "weight_decay": DECAY} | settings
    )


def of_others(params: list[nn.Parameter], **settings: Any) -> Muon:
    return Muon([{"params": params, "method": ADAMW}], **settings)


SHAPES = [(8, 12), (12, 8), (8, 8), (8, 12), (1, 5)]


def test_a_matrix_moves_as_torch_s_muon_would_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Torch iterates in bfloat16: give it the iteration in float32, and all the rest is to agree.
    def in_float32(grad: Tensor, coefficients: object, steps: int, eps: float) -> Tensor:
        return by_gram(grad[None], steps, torch.float32)[0]

    monkeypatch.setattr(torch_muon, "_zeropower_via_newtonschulz", in_float32)
    mine = parameters(*SHAPES)
    theirs = copies(mine)
    settings = {"lr": LR, "momentum": 0.9, "weight_decay": DECAY, "ns_steps": 4}
    reference = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings)
    train(Muon([{"params": mine, "method": MUON}], **settings), reference, steps=STEPS)
    for p, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_it_is_as_near_to_torch_s_muon_as_bfloat16_is_to_float32(dtype: str | None) -> None:
    mine = parameters(*SHAPES)
    theirs = copies(mine)
    reference = torch.optim.Muon(theirs, LR, 0.0, adjust_lr_fn="match_rms_adamw")
    train(of_matrices(mine, weight_decay=0.0, ns_dtype=dtype), reference, steps=1)
    for p, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, other, rtol=0, atol=0.05 * LR * 0.2 * math.sqrt(12))


def test_a_state_from_before_ns_dtype_goes_on_as_it_was() -> None:
    one = parameters((8, 12))
    other = copies(one)
    optimizers = of_matrices(one), of_matrices(other)
    old = optimizers[0].state_dict()
    del old["param_groups"][0]["ns_dtype"]
    optimizers[0].load_state_dict(old)
    for (p,), optimizer in zip((one, other), optimizers, strict=True):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert torch.equal(one[0], other[0])


def test_other_weights_are_torch_s_adamw_bit_for_bit() -> None:
    mine = parameters((7,), (5, 3), ())
    theirs = copies(mine)
    settings = {"betas": (0.8, 0.97), "eps": 1e-6}
    optimizer = of_others(mine, adamw_lr=LR, adamw_weight_decay=DECAY, **settings)
    reference = torch.optim.AdamW(theirs, lr=LR, weight_decay=DECAY, fused=True, **settings)
    train(optimizer, reference, steps=STEPS)
    for p, other in zip(mine, theirs, strict=True):
        assert torch.equal(p, other)


def test_a_stack_moves_as_its_matrices_would_one_by_one() -> None:
    stacked = parameters((3, 8, 12))
    single = [nn.Parameter(matrix.detach().clone()) for matrix in stacked[0]]
    generator = torch.Generator().manual_seed(5)
    together, alone = of_matrices(stacked), of_matrices(single)
    for _ in range(STEPS):
        stacked[0].grad = torch.randn((3, 8, 12), generator=generator)
        for p, grad in zip(single, stacked[0].grad, strict=True):
            p.grad = grad.clone()
        together.step()
        alone.step()
    torch.testing.assert_close(stacked[0], torch.stack(list(single)), rtol=0, atol=1e-6)


def test_parts_of_a_matrix_move_as_matrices_of_their_own() -> None:
    [whole] = parameters((24, 8))
    three = [nn.Parameter(part.detach().clone()) for part in whole.chunk(3)]
    together = Muon([{"params": [whole], "method": MUON, "parts": 3}], lr=LR)
    alone = Muon([{"params": three, "method": MUON}], lr=LR)
    whole.grad = torch.randn_like(whole)
    for p, grad in zip(three, whole.grad.chunk(3), strict=True):
        p.grad = grad.clone()
    together.step()
    alone.step()
    torch.testing.assert_close(whole, torch.cat(list(three)), rtol=0, atol=1e-6)


def test_how_matrices_are_batched_changes_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = parameters(*SHAPES, (3, 8, 12), (2, 12, 8), (2, 3, 8, 12))
    theirs = copies(mine)
    train(of_matrices(mine), steps=STEPS)
    monkeypatch.setattr(muon, "AT_ONCE", {"cpu": 1})
    train(of_matrices(theirs), steps=STEPS)
    for p, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, other, rtol=0, atol=1e-6)


def test_a_step_is_as_long_as_adamw_s() -> None:
    [p] = parameters((64, 256))
    before = p.detach().clone()
    train(of_matrices([p], weight_decay=0.0), steps=1)
    size = float((p.detach() - before).square().mean().sqrt())
    # 0.2 to 0.4 is what AdamW's updates measure (arXiv:2502.16982, section 2.2).
    assert size == pytest.approx(0.2 * LR, rel=0.2)


def test_experts_without_tokens_do_not_move_and_others_are_not_affected() -> None:
    stacked = parameters((3, 8, 12))
    alone = copies(stacked)
    train(optimizer := of_matrices(stacked, weight_decay=0.0), steps=2)
    train(reference := of_matrices(alone, weight_decay=0.0), steps=2)
    grad = torch.randn(3, 8, 12)
    grad[1] = 0
    before, momentum = stacked[0].detach().clone(), optimizer.state[stacked[0]]["momentum"].clone()
    stacked[0].grad = grad
    alone[0].grad = torch.where(grad == 0, torch.randn(()), grad)
    optimizer.step()
    reference.step()
    assert torch.equal(stacked[0][1], before[1])
    assert torch.equal(stacked[0][[0, 2]], alone[0][[0, 2]])
    kept = optimizer.state[stacked[0]]["momentum"][1]
    torch.testing.assert_close(kept, 0.95 * momentum[1])


def test_weights_without_a_gradient_are_left_alone() -> None:
    matrix, other = parameters((4, 6), (5,))
    optimizer = Muon([{"params": [matrix], "method": MUON}, {"params": [other], "method": ADAMW}])
    before = [p.detach().clone() for p in (matrix, other)]
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip((matrix, other), before, strict=True))
    assert not optimizer.state


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_every_precision_keep_theirs(dtype: torch.dtype) -> None:
    [matrix], [other] = parameters((2, 8, 12), dtype=dtype), parameters((5,), dtype=dtype)
    exact = [p.detach().float() for p in (matrix, other)]
    references = [nn.Parameter(p.clone()) for p in exact]

    def optimizer(matrix: nn.Parameter, other: nn.Parameter) -> Muon:
        groups = [{"params": [matrix], "method": MUON}, {"params": [other], "method": ADAMW}]
        return Muon(groups, lr=LR, adamw_lr=LR)

    mine = optimizer(matrix, other)
    train(mine, optimizer(*references), steps=1)
    digits = 1e-6 if dtype == torch.float64 else 0.05
    for p, reference in zip((matrix, other), references, strict=True):
        assert p.dtype == dtype
        torch.testing.assert_close(p.float(), reference.float(), rtol=0, atol=digits)
    assert mine.state[matrix]["momentum"].dtype == dtype


def test_a_closure_is_called_with_gradients_and_its_loss_is_returned() -> None:
    [p] = parameters((4, 6))
    optimizer = of_matrices([p])

    def closure() -> float:
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    before = p.square().sum().item()
    assert optimizer.step(closure) == before
    assert p.square().sum().item() < before


def test_a_gradient_scaler_unscales_and_skips_overflows() -> None:
    mine = parameters((4, 6), (5,))
    theirs = copies(mine)

    def optimizer(params: list[nn.Parameter]) -> Muon:
        groups = [{"params": params[:1], "method": MUON}, {"params": params[1:], "method": ADAMW}]
        return Muon(groups, lr=LR)

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled, plain = optimizer(mine), optimizer(theirs)

    def loss(params: list[nn.Parameter]) -> Tensor:
        return torch.stack([((p - 1) ** 4).sum() for p in params]).sum()

    for step in range(3):
        for one in (scaled, plain):
            one.zero_grad()
        scaler.scale(loss(mine)).backward()
        if step == 1:
            assert mine[0].grad is not None
            mine[0].grad[0, 0] = torch.inf
        scaler.unscale_(scaled)
        nn.utils.clip_grad_norm_(mine, 0.5)
        scaler.step(scaled)
        scaler.update()
        if step != 1:
            loss(theirs).backward()
            nn.utils.clip_grad_norm_(theirs, 0.5)
            plain.step()
    for p, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, other)


def test_clipping_by_a_factor_does_not_change_a_first_step_of_matrices() -> None:
    mine = parameters((4, 6))
    theirs = copies(mine)
    mine[0].grad = torch.randn(4, 6)
    theirs[0].grad = mine[0].grad * 0.01
    of_matrices(mine).step()
    of_matrices(theirs).step()
    torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_resumed_optimizer_goes_on_bit_for_bit(steps: int) -> None:
    def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": params[:2], "method": MUON}, {"params": params[2:], "method": ADAMW}]

    mine = parameters((4, 6), (2, 6, 4), (5,))
    first = Muon(groups(mine), lr=LR)
    train(first, steps=steps)
    theirs = copies(mine)
    second = Muon(groups(theirs), lr=9.0, momentum=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(first, second, steps=2)
    for p, other in zip(mine, theirs, strict=True):
        assert torch.equal(p, other)
    for group, other_group in zip(first.param_groups, second.param_groups, strict=True):
        assert group.keys() == other_group.keys()


def test_the_same_steps_give_the_same_weights() -> None:
    mine = parameters((3, 8, 12), (8, 8))
    theirs = copies(mine)
    train(of_matrices(mine), steps=STEPS)
    train(of_matrices(theirs), steps=STEPS)
    for p, other in zip(mine, theirs, strict=True):
        assert torch.equal(p, other)


def test_each_method_has_its_learning_rate_and_decay_and_a_group_may_have_its_own() -> None:
    a, b, c, d = parameters((2, 2), (2,), (2, 2), (2,))
    optimizer = Muon(
        [
            {"params": [a], "method": MUON},
            {"params": [b], "method": ADAMW},
            {"params": [c], "method": MUON, "lr": 0.7, "weight_decay": 0.8},
            {"params": [d], "method": ADAMW, "lr": 0.9, "weight_decay": 1.0},
        ],
        lr=0.1,
        weight_decay=0.2,
        adamw_lr=0.3,
        adamw_weight_decay=0.4,
    )
    settings = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert settings == [(0.1, 0.2), (0.3, 0.4), (0.7, 0.8), (0.9, 1.0)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": -0.1}, "lr -0.1 must be 0 or more"),
        ({"lr": math.nan}, "lr nan must be 0 or more"),
        ({"adamw_lr": math.inf}, "adamw_lr inf must be"),
        ({"weight_decay": -1.0}, "weight_decay -1.0 must be"),
        ({"adamw_weight_decay": -1.0}, "adamw_weight_decay -1.0 must be"),
        ({"eps": -1e-8}, "eps -1e-08 must be"),
        ({"momentum": 1.0}, "momentum 1.0 must be 0 or more, and below 1"),
        ({"betas": (0.9, 1.0)}, "betas 1.0 must be"),
        ({"ns_steps": 0}, "ns_steps 0 must be between 1 and 6"),
        ({"ns_steps": 7}, "ns_steps 7 must be between 1 and 6"),
        ({"ns_dtype": "float16"}, "ns_dtype float16 must be float32 or bfloat16"),
    ],
)
def test_values_out_of_their_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        of_matrices(parameters((2, 2)), **settings)


def test_a_weight_that_is_no_matrix_or_has_uneven_parts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(5,\): give --model\.param_groups MuonM"):
        Muon(parameters((4, 6), (5,)))
    with pytest.raises(ValueError, match=r"shape \(4, 6\) has not 3 equal parts"):
        Muon([{"params": parameters((4, 6)), "parts": 3}])


@pytest.mark.gpu
@pytest.mark.parametrize("make", [of_matrices, of_others])
def test_on_a_gpu_it_moves_weights_as_on_a_cpu(make: Callable[..., Muon]) -> None:
    mine = parameters((8, 12), (3, 8, 12))
    theirs = [nn.Parameter(p.detach().cuda()) for p in mine]
    generator = torch.Generator().manual_seed(5)
    optimizers = make(mine), make(theirs)
    for _ in range(2):
        for p, other in zip(mine, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            other.grad = p.grad.cuda()
        for optimizer in optimizers:
            optimizer.step()
        optimizers[1].load_state_dict(optimizers[1].state_dict())
    for p, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, other.cpu(), rtol=0, atol=0.05)
