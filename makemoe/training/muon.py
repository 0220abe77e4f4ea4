"""Muon: momentum whose matrices are orthogonalised, with AdamW for every other weight."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from makemoe.errors import UsageError
from makemoe.model.attention import Attention
from makemoe.model.router import Router
from makemoe.shards import any_of_parts, are_matrices_cut, here, with_whole_matrices
from makemoe.training.orthogonal import MOST_STEPS, orthogonalised
from makemoe.training.param_groups import ParamGroups, Weight

MUON, ADAMW = "muon", "adamw"
"""Values of a group's option `method`."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

AT_ONCE = {"cpu": 1 << 19}
"""Numbers in a batch of matrices by kind of device: on a CPU, what its caches hold."""

AT_ONCE_ELSEWHERE = 1 << 26

FUSED = "cpu", "cuda"
"""Kinds of devices on which one operation makes a whole step of AdamW."""


class MuonMatrices(ParamGroups):
    """For the optimizer `Muon`: it turns the matrices within blocks; AdamW trains everything else.

    Everything else is embeddings, the output layer, routers, biases and norms; of it, only matrices
    decay, as in `DecayMatrices`. A layer that computes queries, keys and values together is three
    matrices.
    """

    made_for = "--model.optimizer Muon"

    def divide(self, weights: Sequence[Weight]) -> list[dict[str, Any]]:
        turned = [weight for weight in weights if is_hidden_matrix(weight)]
        if not turned:
            raise UsageError(
                "--model.param_groups MuonMatrices: the model has no matrices between embeddings "
                "and output layer: use --model.optimizer AdamW and no MuonMatrices"
            )
        rest = [weight for weight in weights if not is_hidden_matrix(weight)]
        return [
            group([weight for weight in turned if not is_three(weight)], method=MUON, parts=1),
            group([weight for weight in turned if is_three(weight)], method=MUON, parts=3),
            group([weight for weight in rest if weight.is_matrix], method=ADAMW),
            group([w for w in rest if not w.is_matrix], method=ADAMW, weight_decay=0.0),
        ]


def group(weights: Iterable[Weight], **options: Any) -> dict[str, Any]:
    """A group of the optimizer."""
    return {"params": [weight.parameter for weight in weights], **options}


def is_hidden_matrix(weight: Weight) -> bool:
    """Whether a weight is a matrix between two layers of the residual stream, outside routers."""
    is_output = any(getattr(weight.model, "head", None) is owner for owner in weight.owners)
    return weight.is_matrix and not is_output and not weight.is_within(Router)


def is_three(weight: Weight) -> bool:
    """Whether a weight is the queries', keys' and values' matrices, one above the other."""
    return weight.is_within(Attention) and any(
        isinstance(owner, nn.Linear) and owner.out_features == 3 * owner.in_features
        for owner in weight.owners
    )


class Muon(Optimizer):
    """Moves matrices by their orthogonalised momentum (Jordan et al. 2024), other weights by AdamW.

    Which weights are which is said by the groups' option `method`; the policy `MuonMatrices` makes
    such groups. A matrix moves by lr * 0.2 * sqrt(max(R, C)), which is as far as AdamW would move
    it (arXiv:2502.16982, equation 4). A stack (..., R, C) is many matrices. A matrix whose gradient
    is zero, such as that of an expert without tokens, only decays: its step would have full length,
    however small its momentum.

    Args:
        params: groups of parameters, with a `method`: `muon` or `adamw`; and with `parts`, if
            a matrix is that many matrices, one above the other.
        lr: learning rate of matrices.
        momentum: share of the old momentum kept in each step.
        weight_decay: decoupled weight decay of matrices, times lr.
        ns_steps: steps of the Newton-Schulz iteration; fewer are cheaper and less exact.
        ns_dtype: type of its products: float32, or bfloat16, which many processors multiply several
            times as fast; null: bfloat16 on a GPU, else float32.
        adamw_lr: learning rate of the other weights.
        adamw_weight_decay: their weight decay, times their learning rate.
        betas: AdamW's shares of old first and second moments.
        eps: AdamW's smallest divisor.

    Raises:
        ValueError: for a value out of its range, or a weight that is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        ns_steps: int = 5,
        adamw_lr: float = 3e-3,
        adamw_weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        ns_dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> None:
        sizes = {"lr": lr, "weight_decay": weight_decay, "adamw_lr": adamw_lr}
        sizes |= {"adamw_weight_decay": adamw_weight_decay, "eps": eps}
        for name, value in sizes.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} {value} must be 0 or more")
        for name, share in (("momentum", momentum), *(("betas", beta) for beta in betas)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} {share} must be 0 or more, and below 1")
        if not 1 <= ns_steps <= MOST_STEPS:
            raise ValueError(f"ns_steps {ns_steps} must be between 1 and {MOST_STEPS}")
        if ns_dtype is not None and ns_dtype not in DTYPES:
            raise ValueError(f"ns_dtype {ns_dtype} must be {' or '.join(DTYPES)}")
        for_adamw = {"lr": adamw_lr, "weight_decay": adamw_weight_decay}
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        super().__init__(
            [for_adamw | group if group.get("method") == ADAMW else group for group in groups],
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "ns_steps": ns_steps,
                "ns_dtype": ns_dtype,
                "betas": betas,
                "eps": eps,
                "method": MUON,
                "parts": 1,
            },
        )
        # Arguments too, by which an optimizer that a function built is described.
        self.defaults |= {f"adamw_{name}": value for name, value in for_adamw.items()}
        for group in self.param_groups:
            if group["method"] == MUON:
                check_matrices(group["params"], group["parts"])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["method"] == MUON:
                for batch in batches(params):
                    self.turn(batch, group)
            elif params:
                self.step_adamw(params, group)
        return loss

    def turn(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update weights whose matrices have the same shape."""
        rows, columns = params[0].shape[-2] // group["parts"], params[0].shape[-1]

        def turned(matrices: list[Tensor]) -> list[Tensor]:
            updates = [matrix.view(-1, rows, columns) for matrix in matrices]
            sizes = [len(update) for update in updates]
            x_MRC = updates[0] if len(updates) == 1 else torch.cat(updates)
            # Of a run that is resumed, the group may be older than this option.
            dtype = DTYPES.get(group.get("ns_dtype") or "")
            done = torch.split(orthogonalised(x_MRC, group["ns_steps"], dtype), sizes)
            return [new.reshape(old.shape) for new, old in zip(done, matrices, strict=True)]

        directions = self.directions(params, group["momentum"])
        length = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
        for p, update in zip(params, with_whole_matrices(directions, params, turned), strict=True):
            own = here(p)
            own.mul_(1 - group["lr"] * group["weight_decay"])
            own.add_(update, alpha=-length)

    def directions(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        """The directions of a step before they are orthogonalised: Nesterov's momentum, updated.

        Of weights in parts, those of the parts that are here.
        """
        directions, moving = [], []
        for p in params:
            assert p.grad is not None
            if not (state := self.state[p]):
                state["momentum"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
            grad = here(p.grad)
            mean = here(state["momentum"]).lerp_(grad, 1 - momentum)
            moving.append(torch.linalg.vector_norm(grad, dim=(-2, -1), keepdim=True) > 0)
            directions.append(grad.lerp(mean, momentum))
        if are_matrices_cut(params[0]):
            moving = list(any_of_parts(torch.stack(moving), params[0]))
        return [
            direction.mul_(moves.to(direction.dtype)).contiguous()
            for direction, moves in zip(directions, moving, strict=True)
        ]

    def step_adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update weights by torch's own AdamW."""
        for p in params:
            if not (state := self.state[p]):
                state["step"] = torch.zeros((), device=p.device)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
            # A resumed state has its count where the checkpoint was read.
            self.state[p]["step"] = self.state[p]["step"].to(p.device)
        states = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        adamw(
            [here(p) for p in params],
            [here(p.grad) for p in params if p.grad is not None],
            [here(state["exp_avg"]) for state in states],
            [here(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=all(p.device.type in FUSED for p in params),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def check_matrices(params: Iterable[Tensor], parts: int) -> None:
    """Raise ValueError for a weight that is not a matrix, or not of that many equal parts."""
    for p in params:
        if p.ndim < 2:
            raise ValueError(
                f"Muon is for matrices, and a weight has the shape {tuple(p.shape)}: give "
                "--model.param_groups MuonMatrices, which leaves the others to AdamW"
            )
        if p.shape[-2] % parts:
            raise ValueError(f"a weight of the shape {tuple(p.shape)} has not {parts} equal parts")


def batches(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Weights with matrices of the same shape, together as far as is worth it."""

    def kind(p: Tensor) -> tuple[Any, ...]:
        return *p.shape[-2:], str(p.dtype), str(p.device), are_matrices_cut(p)

    for _, alike in groupby(sorted(params, key=kind), kind):
        batch: list[Tensor] = []
        for p in alike:
            most = AT_ONCE.get(p.device.type, AT_ONCE_ELSEWHERE)
            if batch and sum(other.numel() for other in (*batch, p)) > most:
                yield batch
                batch = []
            batch.append(p)
        yield batch
