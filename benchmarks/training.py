"""Times the training step and the MoE layer, against the plain model and a dense twin."""

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any, get_args

import torch
from torch import Tensor, nn

from benchmarks.machine import share_of_matmuls
from benchmarks.measure import BF16, FLOAT32, Bench, Contestant, Measured, Run
from benchmarks.models import (
    DROPOUT,
    HIDDEN,
    LARGE,
    N_EMBD,
    RECIPE,
    TINY,
    TOP_K,
    Size,
    batches,
    ours,
)
from benchmarks.plain_moe import copy_of
from benchmarks.report import Goal, Result
from makemoe.model.backends import BackendName
from makemoe.model.experts import MLPExperts
from makemoe.model.router import TopKRouter
from makemoe.training.losses import cross_entropy
from makemoe.training.work import work_of

BATCHES = 32
"""Batches used in turn, so that routing and the sizes of the experts' groups change every step."""

LAYER_INPUTS = 4
"""Batches for a single layer: few, because they count in its memory; router noise varies groups."""

STILL = 1e-9
"""A learning rate at which AdamW does all its work and the routing does not change."""

WITHOUT_DROPOUT: dict[str, Any] = {"dropout": 0.0, "router": TopKRouter}


def training_step(bench: Bench) -> list[Result]:
    """Forward, loss, backward, AdamW: the recipe with its dropout and noise, against the plain."""
    results = []
    sizes = ((RECIPE, (2, 4)), (LARGE, (None, None)))
    for size, goals in bench.choose(sizes, ((TINY, (2, 4)),)):
        work = f"training step, {size}"
        dtypes = FLOAT32, BF16
        *mine, plain = bench.race(
            work,
            *(contestant("ours", train_ours, size, bench, dtype) for dtype in dtypes),
            contestant("plain", train_plain, size, bench, FLOAT32),
        )
        for dtype, measured, bound in zip(dtypes, mine, goals, strict=True):
            goal = None if bound is None else Goal(">=", bound)
            results.append(
                step_result(bench, work, size, dtype, measured, "plain, float32", plain, goal)
            )
    return results


def dense_twin(bench: Bench) -> list[Result]:
    """The step without dropout against dense feed-forward layers of the active width."""
    results = []
    size = bench.choose(LARGE, TINY)
    work = f"step against its dense twin, {size}"
    wide = partial(MLPExperts, hidden=TOP_K * HIDDEN)
    one_expert = {"num_experts": 1, "top_k": 1, "experts": wide}
    for dtype in (FLOAT32, BF16):
        mine, *twins = bench.race(
            f"{work}, {dtype}",
            contestant("ours", train_ours, size, bench, dtype, **WITHOUT_DROPOUT),
            contestant("one", train_ours, size, bench, dtype, **WITHOUT_DROPOUT | one_expert),
            contestant("dense", train_dense, size, bench, dtype),
        )
        for against, twin in zip(("one expert", "two nn.Linear"), twins, strict=True):
            goal = Goal("<=", 1.2)
            results.append(
                step_result(bench, work, size, dtype, mine, f"{against}, {dtype}", twin, goal)
            )
    return results


def moe_layer(bench: Bench) -> list[Result]:
    """The MoE layer only, forward and backward, per dispatch backend, against the plain one."""
    results = []
    for size in bench.choose((RECIPE, LARGE), (TINY,)):
        flops = 6 * size.tokens * TOP_K * 2 * N_EMBD * HIDDEN
        kinds = [(dtype, name) for dtype in (FLOAT32, BF16) for name in get_args(BackendName)]
        work = f"MoE layer, {size.tokens} tokens"
        *mine, plain = bench.race(
            work,
            *(contestant(name, run_layer, size, bench, dtype, name) for dtype, name in kinds),
            contestant("plain", run_layer, size, bench, FLOAT32, None),
        )
        for (dtype, name), measured in zip(kinds, mine, strict=True):
            share = share_of_matmuls(flops, measured.seconds, size, bench.device, dtype)
            results.append(
                Result(
                    f"{work}, {name}",
                    dtype,
                    measured.ms,
                    "plain, float32",
                    plain.ms,
                    share=share,
                    peak_mb=(measured.peak_mb, plain.peak_mb),
                )
            )
    return results


def contestant(
    name: str,
    train: Callable[..., Run],
    size: Size,
    bench: Bench,
    dtype: str,
    *more: Any,
    **changes: Any,
) -> Contestant:
    """One step with one of the functions below."""
    return Contestant(name, partial(train, size, bench.device, dtype, *more, **changes), dtype)


def train_ours(size: Size, device: str, dtype: str, **changes: Any) -> Run:
    model = ours(size, **changes).to(device)
    return training_run(model, lambda ids_BT: model(ids_BT)[0], size, device, dtype)


def train_plain(size: Size, device: str, dtype: str) -> Run:
    model = copy_of(ours(size), DROPOUT).to(device)
    return training_run(model, model, size, device, dtype)


def train_dense(size: Size, device: str, dtype: str) -> Run:
    model = ours(size, **WITHOUT_DROPOUT)
    for block in model.blocks:
        block.moe = DenseLayer(N_EMBD, TOP_K * HIDDEN)
    return training_run(model.to(device), lambda ids_BT: model(ids_BT)[0], size, device, dtype)


class DenseLayer(nn.Module):
    """The layer that a MoE layer replaces: no router, every token through the same two matrices."""

    def __init__(self, n_embd: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_embd, hidden), nn.ReLU(), nn.Linear(hidden, n_embd))

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        return self.layers(x_BTD), None


def training_run(
    model: nn.Module, logits: Callable[[Tensor], Tensor], size: Size, device: str, dtype: str
) -> Run:
    """One optimizer step per run; the same optimizer for all."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=STILL, fused=True)
    text = cycle(batches(size, BATCHES, device))

    def run() -> None:
        x_BT, y_BT = next(text)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == BF16):
            loss = cross_entropy(logits(x_BT), y_BT)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def run_layer(size: Size, device: str, dtype: str, backend: str | None) -> Run:
    """Forward and backward of one layer in training; without a backend, of the plain layer."""
    model = ours(size._replace(n_layer=1), dispatch=backend or "auto")
    plain = copy_of(model, DROPOUT)
    layer = (plain.blocks[0] if backend is None else model.blocks[0]).moe.to(device).train()
    shape = (LAYER_INPUTS, size.batch_size, size.block_size, N_EMBD)
    inputs = cycle(torch.randn(shape, device=device).unbind())

    def run() -> None:
        x_BTD = next(inputs).requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == BF16):
            y = layer(x_BTD)
        y_BTD = y if backend is None else y[0]
        y_BTD.backward(x_BTD.detach())
        layer.zero_grad()
        x_BTD.grad = None

    return run


def step_result(
    bench: Bench,
    work: str,
    size: Size,
    dtype: str,
    mine: Measured,
    against: str,
    theirs: Measured,
    goal: Goal | None,
    **more: Any,
) -> Result:
    """One result line for two steps."""
    return Result(
        work,
        dtype,
        mine.ms,
        against,
        theirs.ms,
        goal=goal,
        longer=goal is not None and goal.sign == "<=",
        share=share_of_matmuls(step_flops(size), mine.seconds, size, bench.device, dtype),
        peak_mb=(mine.peak_mb, theirs.peak_mb),
        **more,
    )


def step_flops(size: Size) -> float:
    """FLOPs of a training step, without those of the optimizer."""
    return float(size.tokens * work_of(ours(size)).flops)
