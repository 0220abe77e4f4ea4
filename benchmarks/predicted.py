"""Compares predicted steps of two processes with real ones, from rates measured in the same run."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.machine import bandwidth, best
from benchmarks.measure import Bench
from benchmarks.models import RECIPE, TINY, Size, batches, ours
from benchmarks.processes import together
from benchmarks.report import Result
from makemoe.hardware import Link
from makemoe.model.footprint import footprint
from makemoe.model.transformer import MoETransformer
from makemoe.parallel.forecast import Forecast, Machines, Training, forecast, seconds, ways
from makemoe.parallel.layout import Layout
from makemoe.parallel.sharding import shard
from makemoe.parallel.stored import Kept
from makemoe.parallel.traffic import Kind, Sizes, Step
from makemoe.training.losses import cross_entropy
from makemoe.training.work import work_of

PROCESSES = 2
SENT = 1 << 20
"""Numbers of the tensor by which collectives are measured, about those of a block of the recipe."""

STEPS = 15


def predicted_step(bench: Bench) -> list[Result]:
    """Steps of two processes against what `makemoe plan` predicts from this machine's rates."""
    size = bench.choose(RECIPE, TINY)
    steps = bench.choose(STEPS, 2)
    bench.say("predicted steps of two processes")
    found = together(PROCESSES, __name__, "steps_and_forecasts", list(size), steps)[0]
    rates = ", ".join(f"{name} {value:.3g}" for name, value in found["rates"].items())
    return [
        Result(
            f"step of {name} on {PROCESSES} processes, {size}",
            "float32",
            1000 * one["measured"],
            "predicted",
            1000 * one["predicted"],
            longer=True,
            note=f"{one['alone']:.0%} of it products; measured: {rates}",
        )
        for name, one in found["steps"].items()
    ]


def steps_and_forecasts(size: list[int], steps: int) -> dict[str, Any]:
    """Rates, and seconds per step measured and predicted, in one of the processes."""
    torch.distributed.init_process_group("gloo")
    shape = Size(*size)
    alone = seconds_per_step(ours(shape), shape, steps)
    net = ours(shape)
    training = training_of(net, shape)
    start = agreed(partial(torch.distributed.all_reduce, torch.zeros(1)), 50)
    links = measured_links(start)
    machines = measured_machines(training, alone, start)
    found = {}
    for way in (way for alike in ways(training.sizes, PROCESSES, PROCESSES, None) for way in alike):
        expected = forecast(training, way, PROCESSES, machines)
        real = seconds_per_step(divided(ours(shape), way.layout), shape, steps)
        found[way.name] = told(expected, machines, links, real)
    rates = {
        "FLOP/s": machines.flops,
        "share of them": machines.share,
        **{f"bytes/s, {kind}": link.rate for kind, link in links.items()},
        "s per collective": machines.start,
        "bytes/s of memory": machines.memory_rate,
    }
    return {"rates": rates, "steps": found}


def told(
    expected: Forecast, machines: Machines, links: Mapping[Kind, Link], real: float
) -> dict[str, float]:
    """Seconds of a step, and the share of products in the predicted ones.

    Over gloo, collectives have different rates, which one link for all of them cannot have.
    """
    sending = sum(seconds(s, machines._replace(link=links[s.kind])) for s in expected.sent)
    predicted = expected.compute_s + expected.update_s + sending
    return {"measured": real, "predicted": predicted, "alone": expected.compute_s / predicted}


def divided(net: MoETransformer, layout: Layout | None) -> Any:
    """The model as a strategy would train it."""
    if layout is None:
        return DistributedDataParallel(net)
    shard(net, layout, "cpu")
    return net


def training_of(net: MoETransformer, shape: Size) -> Training:
    outer = footprint(net.architecture).outer
    kept = Kept(2, outer, 2, averages=False, activations=0)
    return Training(Sizes.of(net), Step(shape.tokens), kept, work_of(net).flops)


def measured_links(start: float) -> dict[Kind, Link]:
    """The rate of each kind of collective: bytes that a process sends per second.

    Args:
        start: seconds of one that sends next to nothing.
    """
    whole, other, half = torch.zeros(SENT), torch.zeros(SENT), torch.zeros(SENT // PROCESSES)
    group = torch.distributed
    # A sum over two processes sends as many bytes as it has, the others half of them.
    works: dict[Kind, tuple[Callable[[], object], int]] = {
        "reduce": (partial(group.all_reduce, whole), whole.nbytes),
        "gather": (partial(group.all_gather_into_tensor, whole, half), half.nbytes),
        "scatter": (partial(group.reduce_scatter_tensor, half, whole), half.nbytes),
        "exchange": (partial(group.all_to_all_single, other, whole), half.nbytes),
    }
    return {
        kind: Link(kind, nbytes / (agreed(work, 20) - start), 0.0)
        for kind, (work, nbytes) in works.items()
    }


def measured_machines(training: Training, alone: float, start: float) -> Machines:
    """This machine, as its processes find it while all of them work, without its connections.

    Args:
        training: what is trained.
        alone: seconds of a step in which nothing is sent.
        start: seconds of a collective that sends next to nothing.
    """
    a, b = torch.randn(2, 1024, 1024)
    flops = 2 * 1024**3 / best(lambda: torch.mm(a, b), "cpu")
    unknown = Link("unknown", 1.0, 0.0)
    machines = Machines(
        flops=flops,
        share=1.0,
        memory=1e12,
        memory_rate=bandwidth("cpu"),
        link=unknown,
        network=unknown,
        start=start,
        overlap=0.0,
        per_machine=PROCESSES,
    )
    [way] = next(ways(training.sizes, 1, 1, None))
    expected = forecast(training, way, 1, machines)
    return machines._replace(share=expected.compute_s / (alone - expected.update_s))


def agreed(work: Callable[[], object], times: int) -> float:
    """Seconds per call, the same in all processes: the mean of the first one's."""
    torch.distributed.barrier()
    work()
    begin = time.perf_counter()
    for _ in range(times):
        work()
    seconds = torch.tensor((time.perf_counter() - begin) / times, dtype=torch.float64)
    torch.distributed.broadcast(seconds, 0)
    return seconds.item()


def seconds_per_step(net: Any, shape: Size, steps: int) -> float:
    """Median seconds of a step, the first three left out."""
    torch.distributed.barrier()
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, foreach=True)
    rank = torch.distributed.get_rank()
    data = batches(shape, PROCESSES * (steps + 3), "cpu")[rank::PROCESSES]
    seconds = []
    for x_BT, y_BT in data:
        begin = time.perf_counter()
        cross_entropy(net(x_BT)[0], y_BT).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[3:])
