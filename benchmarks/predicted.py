"""Compares predicted steps of two processes with real ones, from rates measured in the same run."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.machine import best
from benchmarks.measure import Bench
from benchmarks.models import RECIPE, TINY, Size, batches, ours
from benchmarks.processes import together
from benchmarks.report import Result
from makemoe.hardware import Link
from makemoe.model.footprint import footprint
from makemoe.model.transformer import MoETransformer
from makemoe.parallel.forecast import Forecast, Machines, Training, forecast, ways
from makemoe.parallel.layout import Layout
from makemoe.parallel.sharding import shard
from makemoe.parallel.stored import Kept
from makemoe.parallel.traffic import Sizes, Step
from makemoe.training.losses import cross_entropy
from makemoe.training.work import work_of

PROCESSES = 2
SENT, QUICKLY_SENT = 8 << 20, 8 << 10
"""Numbers of the tensor by which the processes' connection is measured."""

STEPS = 15


def predicted_step(bench: Bench) -> list[Result]:
    """Steps of two processes against what `makemoe plan` predicts from this machine's rates."""
    size = bench.choose(RECIPE, TINY)
    steps, sent = bench.choose((STEPS, SENT), (2, QUICKLY_SENT))
    bench.say("predicted steps of two processes")
    found = together(PROCESSES, __name__, "steps_and_forecasts", list(size), steps, sent)[0]
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


def steps_and_forecasts(size: list[int], steps: int, sent: int) -> dict[str, Any]:
    """Rates, and seconds per step measured and predicted, in one of the processes."""
    torch.distributed.init_process_group("gloo")
    shape = Size(*size)
    alone = seconds_per_step(ours(shape), shape, steps)
    net = ours(shape)
    training = training_of(net, shape)
    machines = measured_machines(training, alone, sent)
    found = {}
    for way in (way for alike in ways(training.sizes, PROCESSES, PROCESSES, None) for way in alike):
        expected = forecast(training, way, PROCESSES, machines)
        real = seconds_per_step(divided(ours(shape), way.layout), shape, steps)
        found[way.name] = told(expected, real)
    rates = {
        "FLOP/s": machines.flops,
        "share of them": machines.share,
        "bytes/s between processes": machines.link.rate,
        "s per collective": machines.start,
        "bytes/s of memory": machines.memory_rate,
    }
    return {"rates": rates, "steps": found}


def told(expected: Forecast, real: float) -> dict[str, float]:
    return {
        "measured": real,
        "predicted": expected.step_s,
        "alone": expected.compute_s / expected.step_s,
    }


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


def measured_machines(training: Training, alone: float, sent: int) -> Machines:
    """This machine, as its processes find it while all of them work.

    Args:
        training: what is trained.
        alone: seconds of a step in which nothing is sent.
        sent: numbers of the tensor by which the connection is measured.
    """
    a, b = torch.randn(2, 1024, 1024)
    flops = 2 * 1024**3 / best(lambda: torch.mm(a, b), "cpu")
    source = torch.zeros(16 << 20)
    target = torch.empty_like(source)
    memory_rate = 2 * source.nbytes / best(lambda: target.copy_(source), "cpu")
    small, large = torch.zeros(1), torch.zeros(sent)
    start = agreed(lambda: torch.distributed.all_reduce(small), 50)
    # A sum over two processes sends as many bytes as it has.
    rate = large.nbytes / (agreed(lambda: torch.distributed.all_reduce(large), 5) - start)
    machines = Machines(
        flops=flops,
        share=1.0,
        memory=1e12,
        memory_rate=memory_rate,
        link=Link("loopback", rate, 0.0),
        network=Link("none", rate, 0.0),
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
