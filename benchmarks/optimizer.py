"""Times a step of Muon against AdamW, and against torch's Muon on one matrix at a time."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.equality import NotEqualError
from benchmarks.measure import FLOAT32, Bench, Contestant, Run
from benchmarks.models import RECIPE, TINY, Size, ours
from benchmarks.report import Result
from benchmarks.training import STILL, train_ours
from makemoe.model.attention import CausalSelfAttention
from makemoe.model.experts import GatedExperts
from makemoe.model.norm import RMSNorm
from makemoe.model.positions import RotaryPositions
from makemoe.model.router import TopKRouter
from makemoe.training.muon import MUON, Muon, MuonMatrices
from makemoe.training.param_groups import divided, weights_of

WIDE = Size(block_size=256, batch_size=16, n_layer=4)
MODERN: dict[str, Any] = {
    "n_embd": 256,
    "num_experts": 16,
    "top_k": 4,
    "dropout": 0.0,
    "norm": RMSNorm,
    "positions": RotaryPositions,
    "attention": partial(CausalSelfAttention, qk_norm=RMSNorm, bias=False),
    "experts": partial(GatedExperts, hidden=256),
    "router": TopKRouter,
    "tied_embeddings": True,
}
"""Fine-grained experts: many small matrices."""

BFLOAT16 = "bfloat16"
LR, ROUGHLY = 0.01, 0.05
"""Of one step that is compared: by how much of its length two weights may differ.

Torch rounds to bfloat16 in every product.
"""


def optimizer(bench: Bench) -> list[Result]:
    """A step of Muon against fused AdamW and torch's Muon, and its share of a training step."""
    results = []
    sizes: tuple[tuple[Size, dict[str, Any]], ...] = (RECIPE, {}), (WIDE, MODERN)
    for full, changes in sizes:
        size = bench.choose(full, TINY)
        net = ours(size, **changes).to(bench.device)
        check_steps(net)
        kind = "modern parts" if changes else "the recipe"
        work = f"Muon, {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M weights, {kind}"
        builds = {
            "Muon": step_muon,
            "Muon in bfloat16": partial(step_muon, ns_dtype=BFLOAT16),
            "AdamW": step_adamw,
            "torch's Muon": step_singly,
        }
        muon, rounded, adamw, singly, training = bench.race(
            work,
            *(
                Contestant(name, partial(build, size, bench.device, changes), FLOAT32)
                for name, build in builds.items()
            ),
            Contestant(
                "training", partial(train_ours, size, bench.device, FLOAT32, **changes), FLOAT32
            ),
        )
        others = training.seconds - adamw.seconds
        shares = [one.seconds / (others + one.seconds) for one in (muon, rounded, adamw)]
        note = "{:.1%} of a training step, in bfloat16 {:.1%}, AdamW {:.1%}; {}"
        for ours_is, mine, name, other in (
            (FLOAT32, muon, f"AdamW, fused, {FLOAT32}", adamw),
            (FLOAT32, muon, f"torch's Muon, one by one, {BFLOAT16}", singly),
            (BFLOAT16, rounded, f"torch's Muon, one by one, {BFLOAT16}", singly),
        ):
            results.append(
                Result(
                    work,
                    ours_is,
                    mine.ms,
                    name,
                    other.ms,
                    longer=other is adamw,
                    peak_mb=(mine.peak_mb, other.peak_mb),
                    note=note.format(*shares, size),
                )
            )
    return results


def step_muon(
    size: Size,
    device: str,
    changes: dict[str, Any],
    ns_dtype: Literal["bfloat16"] | None = None,
) -> Run:
    """Matrices by Muon, all other weights by AdamW."""
    net = with_gradients(ours(size, **changes).to(device))
    groups = divided(MuonMatrices(), weights_of(net))
    return partial(step, [Muon(groups, lr=STILL, adamw_lr=STILL, ns_dtype=ns_dtype)])


def step_adamw(size: Size, device: str, changes: dict[str, Any]) -> Run:
    """All weights by torch's fused AdamW."""
    net = with_gradients(ours(size, **changes).to(device))
    return partial(step, [torch.optim.AdamW(net.parameters(), lr=STILL, fused=True)])


def step_singly(size: Size, device: str, changes: dict[str, Any]) -> Run:
    """Matrices by torch's Muon, each a parameter of its own; all other weights by AdamW."""
    net = with_gradients(ours(size, **changes).to(device))
    singles, others = parted(net)
    return partial(step, [torch_muon(singles, STILL), torch_adamw(others, STILL)])


def step(optimizers: Sequence[Optimizer]) -> None:
    for one in optimizers:
        one.step()


def torch_muon(singles: Sequence[nn.Parameter], lr: float) -> Optimizer:
    """Torch's Muon with the settings of ours."""
    return torch.optim.Muon(singles, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")


def torch_adamw(others: Sequence[nn.Parameter], lr: float) -> Optimizer:
    return torch.optim.AdamW(others, lr, weight_decay=0.0, fused=True)


def with_gradients(net: nn.Module) -> nn.Module:
    """The model with random gradients, the same in every process."""
    generator = torch.Generator().manual_seed(1337)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p.device)
    return net


def parted(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Copies of the matrices of stacks and of parts, one by one; and the other weights."""
    groups = divided(MuonMatrices(), weights_of(net))
    singles = [
        single
        for group in groups
        if group["method"] == MUON
        for p in group["params"]
        for single in unstacked(p, group["parts"])
    ]
    return singles, [p for group in groups if group["method"] != MUON for p in group["params"]]


def unstacked(p: nn.Parameter, parts: int) -> list[nn.Parameter]:
    """Copies of the matrices in a weight, with their gradients."""
    assert p.grad is not None
    singles = [nn.Parameter(matrix.clone()) for matrix in matrices(p.detach(), parts)]
    for single, grad in zip(singles, matrices(p.grad, parts), strict=True):
        single.grad = grad.clone()
    return singles


def matrices(x: Tensor, parts: int) -> list[Tensor]:
    """The matrices (R, C) in a tensor (..., parts * R, C)."""
    return list(x.reshape(-1, x.shape[-2] // parts, x.shape[-1]))


def check_steps(net: nn.Module) -> None:
    """Raise NotEqualError unless both ways take the same step, as far as bfloat16 is exact."""
    groups = divided(MuonMatrices(), weights_of(with_gradients(net)))
    singles, others = parted(net)
    before = [p.detach().clone() for p in others]
    step([torch_muon(singles, LR), torch_adamw(others, LR)])
    theirs = [p.detach().clone() for p in others]
    with torch.no_grad():
        for p, old in zip(others, before, strict=True):
            p.copy_(old)
    step([Muon(groups, lr=LR, adamw_lr=LR)])
    turned = [
        m
        for group in groups
        if group["method"] == MUON
        for p in group["params"]
        for m in matrices(p.detach(), group["parts"])
    ]
    for mine, other in zip([*turned, *others], [*singles, *theirs], strict=True):
        length = LR * 0.2 * math.sqrt(max(mine.shape)) if mine.ndim > 1 else LR
        difference = (mine - other).abs().max().item()
        if not difference <= ROUGHLY * length:
            raise NotEqualError(f"Muon's step differs from torch's by {difference:.2g}")
