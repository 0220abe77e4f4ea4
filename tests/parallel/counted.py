"""What each of several processes counts of the bytes that a step sends."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed

from makemoe.model.moe import MoELayer
from makemoe.model.transformer import MoETransformer
from makemoe.parallel.layout import Layout
from makemoe.parallel.sharding import shard
from makemoe.shards import here

V, D, L, E, K, B, T = 64, 16, 2, 4, 2, 3, 8
NUMBER = 4  # bytes


def check() -> None:
    """The formulas of docs/parallel.md, for FSDP2, expert parallelism, and both."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    W = torch.distributed.get_world_size()
    for X, sharded, half in ((1, True, False), (2, True, False), (2, False, True)):
        torch.manual_seed(3)
        net = MoETransformer(V, T, L, 2, D, E, K)
        layers = [layer for layer in net.modules() if isinstance(layer, MoELayer)]
        in_experts = sum(p.numel() for layer in layers for p in layer.experts.parameters())
        others = sum(p.numel() for p in net.parameters()) - in_experts
        shard(net, Layout.of(W, 1, sharded, X), "cpu")
        torch.manual_seed(torch.distributed.get_rank())
        ids = torch.randint(V, (B, T))
        own_numbers = sum(here(p).numel() for p in net.parameters())
        if sharded:
            assert own_numbers <= 1.15 / W * (others + in_experts)
        with counting() as sent, torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits, routings = net(ids)
            logits.square().mean().backward()
        parts = (others, W), ((in_experts, W) if X == 1 else (in_experts / X, W // X))
        if sharded:  # gathered twice, and their gradients summed once
            expected = sum(3 * NUMBER * P * (S - 1) / S for P, S in parts)
        else:  # gradients summed, and given to all
            expected = sum(2 * NUMBER * P * (S - 1) / S for P, S in parts)
        assert sent["weights"] == pytest.approx(expected, rel=0.01), (X, sharded, sent, expected)
        own = torch.distributed.get_rank() % X
        leaving = sum(int((r.experts_NK // (E // X) != own).sum()) for r in routings)
        rows = torch.tensor(
            [leaving * 4 * D * (2 if half else NUMBER) + L * E * 8 * (X - 1) / X, sent["rows"]]
        )
        torch.distributed.all_reduce(rows)
        assert rows[1] == pytest.approx(float(rows[0]), rel=0.01), (X, sharded)
        assert (sent["rows"] > 0) == (X > 1)


@contextlib.contextmanager
def counting() -> Iterator[dict[str, float]]:
    """The bytes this process must send at the least, by what they are."""
    sent = {"weights": 0.0, "rows": 0.0}

    def gather(output: torch.Tensor, tensor: torch.Tensor, group: Any) -> None:
        sent["weights"] += tensor.nbytes * (group.size() - 1)

    def scatter(output: torch.Tensor, tensor: torch.Tensor, group: Any) -> None:
        sent["weights"] += output.nbytes * (group.size() - 1)

    def reduce(tensor: torch.Tensor, group: Any) -> None:
        sent["weights"] += 2 * tensor.nbytes * (group.size() - 1) / group.size()

    def trade(output: torch.Tensor, tensor: torch.Tensor, *splits: Any, group: Any) -> None:
        own, size = group.rank(), group.size()
        rows = splits[1] if splits else [len(tensor) // size] * size
        sent["rows"] += tensor[: len(tensor) - rows[own]].nbytes

    def also(count: Callable[..., None], original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            names = {"input": "tensor", "output": "output", "group": "group"}
            count(*args, **{names[k]: v for k, v in kwargs.items() if k in names})
            return original(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name, count in {
            "all_gather_single": gather,
            "reduce_scatter_single": scatter,
            "all_reduce": reduce,
            "all_to_all_single": trade,
        }.items():
            original = getattr(torch.distributed, name)
            patch.setattr(torch.distributed, name, also(count, original))
        yield sent
