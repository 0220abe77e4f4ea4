"""What each of several processes counts of the bytes that a step sends: they are the formulas'."""

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed
from torch.distributed.fsdp import FSDPModule
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from benchmarks.counted import counting, rows_leaving
from makemoe.group import Group
from makemoe.model.moe import MoELayer
from makemoe.model.transformer import MoETransformer
from makemoe.parallel.layout import Layout
from makemoe.parallel.sharding import shard
from makemoe.parallel.traffic import Sizes, Step, sent_by_ddp, sent_by_sharded
from makemoe.shards import here

V, D, L, E, K, B, T = 64, 16, 2, 4, 2, 3, 8
ROWS = "tokens", "counts"

CASES: dict[str, dict[str, Any]] = {
    "FSDP2": {},
    "FSDP2, two copies": {"replicate": 2},
    "FSDP2, accumulated": {"batches": 2},
    "experts and FSDP2": {"experts": 2},
    "experts and FSDP2, accumulated": {"experts": 2, "batches": 3},
    "experts in bf16": {"experts": 2, "sharded": False, "half": True},
    "FSDP2 in bf16 throughout": {"dtype": torch.bfloat16},
    "FSDP2 with a capacity": {"capacity_factor": 1.0},
    "experts with a capacity by weight": {
        "experts": 2,
        "capacity_factor": 1.0,
        "drop_order": "weight",
    },
}


def ready() -> int:
    """Join the group of processes, and return its size."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return torch.distributed.get_world_size()


def new_net(**settings: Any) -> MoETransformer:
    """A model that is the same in all processes."""
    torch.manual_seed(3)
    net = MoETransformer(V, T, L, 2, D, E, K, **settings)
    for layer in net.modules():
        if isinstance(layer, MoELayer):
            layer.group = Group.joined()
    return net


def own_ids() -> torch.Tensor:
    """A batch of this process's own."""
    torch.manual_seed(torch.distributed.get_rank())
    return torch.randint(V, (B, T))


def check() -> None:
    """All layouts."""
    W = ready()
    for name, case in CASES.items():
        if W % (case.get("experts", 1) * case.get("replicate", 1)) == 0:
            check_layout(name, W, **case)


def check_layout(
    name: str,
    W: int,
    experts: int = 1,
    replicate: int = 1,
    sharded: bool = True,
    batches: int = 1,
    half: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> None:
    """Bytes and collectives of a step in a layout, to 1 %."""
    net = new_net(**settings).to(dtype)
    sizes = Sizes.of(net)
    layout = Layout.of(W, replicate, sharded, experts)
    shard(net, layout, "cpu")
    own_numbers = sum(here(p).numel() for p in net.parameters())
    if sharded:
        assert own_numbers <= 1.15 / W * replicate * (sizes.others + sizes.routed)
    rank = torch.distributed.get_rank()
    parts = [part for part in net.modules() if isinstance(part, FSDPModule)]
    leaving = 0
    with counting() as sent, torch.autocast("cpu", torch.bfloat16, enabled=half):
        for batch in range(batches):
            for part in parts:
                part.set_requires_gradient_sync(batch == batches - 1, recurse=False)
            logits, routings = net(own_ids())
            logits.square().mean().backward()
            leaving += rows_leaving(routings, E // experts, rank % experts)
    step = Step(B * T, batches, dtype.itemsize, 2 if half else dtype.itemsize)
    formula = {one.what: one for one in sent_by_sharded(sizes, layout, step)}
    expected = sum(one.nbytes for what, one in formula.items() if what not in ROWS)
    assert sent["weights"] == pytest.approx(expected, rel=0.01), name
    # Loads are not even: as many rows as there really are, over all processes.
    rows = torch.tensor([leaving * 4.0 * D * step.product_bytes, sent["rows"]])
    if "counts" in formula:
        rows[0] += formula["counts"].nbytes
        even = B * T * K * batches * L * (experts - 1) / experts
        assert formula["tokens"].nbytes == even * 4 * D * step.product_bytes
    torch.distributed.all_reduce(rows)
    assert rows[1] == pytest.approx(float(rows[0]), rel=0.01), name
    assert (sent["rows"] > 0) == (experts > 1)
    # A process that is alone in a dimension of the mesh may still call a collective.
    called = sum(one.times for one in formula.values())
    assert sent["collectives"] == called, name


def check_ddp() -> None:
    """DDP: its gradients, counted where it hands them over, once per step."""
    W = ready()
    for batches, settings in ((1, {}), (3, {"capacity_factor": 1.0})):
        net = new_net(**settings)
        model = DistributedDataParallel(net)
        buckets = []

        def hook(state: object, bucket: torch.distributed.GradBucket) -> Future[torch.Tensor]:
            # Called within this turn of the loop only.
            buckets.append(bucket.buffer().nbytes)  # noqa: B023
            work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
            return work.get_future().then(lambda done: done.value()[0])

        model.register_comm_hook(None, hook)
        with counting() as sent:
            for batch in range(batches):
                last = batch == batches - 1
                with contextlib.nullcontext() if last else model.no_sync():
                    model(own_ids())[0].square().mean().backward()
        formula = sent_by_ddp(Sizes.of(net), W, Step(B * T, batches))
        expected = sum(one.nbytes for one in formula)
        assert sent["weights"] == pytest.approx(expected, rel=0.01), batches
        assert sum(buckets) * 2 * (W - 1) / W == pytest.approx(formula[0].nbytes, rel=0.01)
        assert len(buckets) == formula[0].times
