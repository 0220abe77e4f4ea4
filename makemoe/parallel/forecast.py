"""How long a step takes on devices that are not here, and which strategy is the fastest that fits.

The time of a step is that of its matrix products, at a share of the devices' peak; of the
optimizer, which reads and writes what it updates; and of what is sent, as far as it cannot be sent
while a device computes. docs/scaling.md has the formulas and where their figures come from.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from makemoe.hardware import Link
from makemoe.parallel.layout import Layout
from makemoe.parallel.stored import Kept, stored
from makemoe.parallel.traffic import Sent, Sizes, Step, sent_by_ddp, sent_by_sharded

BACKWARD = 2 / 3
"""Share of a step's products that are in its backward pass."""

ROOM = 0.9
"""Share of a device's memory that a model may take; the rest is for kernels and fragments."""

AS_FAST = 1.01
"""A simpler strategy is taken if the fastest one is not faster than that."""


class Machines(NamedTuple):
    """What a forecast takes for granted of the devices, and of what connects them.

    Attributes:
        flops: floating-point operations per second of a device at its peak.
        share: of the peak that matrix products reach.
        memory: bytes of a device.
        memory_rate: bytes of it that are read or written per second.
        link: between the devices of a machine.
        network: between machines.
        start: seconds before a collective sends anything.
        overlap: share of the computing during which weights and gradients are sent as well.
        per_machine: devices in a machine.
    """

    flops: float
    share: float
    memory: float
    memory_rate: float
    link: Link
    network: Link
    start: float
    overlap: float
    per_machine: int


class Training(NamedTuple):
    """What is trained.

    Attributes:
        sizes: of the model.
        step: what one process computes in a step.
        kept: what it stores.
        flops: floating-point operations per token, forward and backward.
        divides: whether its precision allows weights in parts.
    """

    sizes: Sizes
    step: Step
    kept: Kept
    flops: float
    divides: bool = True


class Way(NamedTuple):
    """A way to divide a run over processes.

    Attributes:
        name: what it is called.
        layout: who has which part; None: all weights are in each process.
        options: of the strategy, by their names; None: it is Lightning's own.
    """

    name: str
    layout: Layout | None
    options: dict[str, int | bool] | None = None

    @property
    def family(self) -> str:
        """Its name without numbers."""
        return re.sub(r" \d+", "", self.name)


class Forecast(NamedTuple):
    """What is expected of a way.

    Attributes:
        way: the way.
        stored: bytes per device, by purpose.
        limit: bytes that may be stored.
        sent: what a device sends.
        compute_s: seconds of matrix products.
        update_s: seconds of the optimizer.
        waiting_s: seconds in which weights and gradients are sent and nothing is computed.
        exchange_s: seconds in which tokens travel.
    """

    way: Way
    stored: dict[str, int]
    limit: float
    sent: list[Sent]
    compute_s: float
    update_s: float
    waiting_s: float
    exchange_s: float

    @property
    def memory(self) -> int:
        """Bytes per device."""
        return sum(self.stored.values())

    @property
    def fits(self) -> bool:
        """Whether the model fits the devices."""
        return self.memory <= self.limit

    @property
    def nbytes(self) -> float:
        """Bytes that a device sends per step."""
        return sum(sent.nbytes for sent in self.sent)

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.update_s + self.waiting_s + self.exchange_s

    @property
    def efficiency(self) -> float:
        """The share of a step in which products are computed."""
        return self.compute_s / self.step_s


def forecast(training: Training, way: Way, processes: int, machines: Machines) -> Forecast:
    """What is expected of a way with so many processes, one per device."""
    sizes, step = training.sizes, training.step
    if way.layout is None:
        sent = sent_by_ddp(sizes, processes, step)
    else:
        sent = sent_by_sharded(sizes, way.layout, step)
    parts = stored(sizes, way.layout, step, training.kept._replace(several=processes > 1))
    tokens = step.tokens * step.batches
    compute_s = training.flops * tokens / (machines.share * machines.flops)
    updated = [parts.get(name, 0) for name in ("weights", "optimizer state", "average")]
    touched = 2 * sum(updated) + parts["gradients"]
    beside = [s for s in sent if s.kind != "exchange"]
    last = [s for s in beside if s.kind != "gather"]  # sums begin in the last backward pass
    hidden = machines.overlap * compute_s
    waiting_s = max(
        0.0,
        sum(seconds(s, machines) for s in beside) - hidden,
        sum(seconds(s, machines) for s in last) - hidden * BACKWARD / step.batches,
    )
    return Forecast(
        way,
        parts,
        ROOM * machines.memory,
        sent,
        compute_s,
        touched / machines.memory_rate,
        waiting_s,
        sum(seconds(s, machines) for s in sent if s.kind == "exchange"),
    )


def seconds(sent: Sent, machines: Machines) -> float:
    """How long some collectives take, one after another.

    The hops are those of NCCL's own estimate (ncclTopoTuneModel): rings for gathering and dividing,
    rings within and trees between machines for sums.
    """
    size, link, network = sent.peers.size, machines.link, machines.network
    spanned = sent.peers.machines(machines.per_machine)
    near = -(-size // spanned)  # of them on one machine
    network_rate = network.rate / (machines.per_machine if network.shared else 1)
    if sent.kind == "exchange":
        share_near = (near - 1) / (size - 1)
        transfer = max(share_near / link.rate, (1 - share_near) / network_rate)
        hops = network.latency if spanned > 1 else link.latency
    else:
        # Between machines, each device of a ring sends its part through its own adapter.
        rates = ([link.rate] if near > 1 else []) + ([near * network_rate] if spanned > 1 else [])
        transfer = 1 / min(rates)
        if sent.kind == "reduce":
            hops = 2 * ((near - 1) * link.latency + math.ceil(math.log2(spanned)) * network.latency)
        else:
            hops = (size - spanned) * link.latency + (spanned - 1) * network.latency
    return sent.times * (machines.start + hops) + sent.nbytes * transfer


def ways(
    sizes: Sizes, processes: int, per_machine: int, experts: int | None
) -> Iterator[list[Way]]:
    """The ways to divide a run, from simple to involved.

    Args:
        sizes: of the model.
        processes: how many there are.
        per_machine: how many of them are on one machine.
        experts: how many divide the experts; None: any number.

    Yields:
        ways that differ only in the number of processes that divide the experts.
    """
    if processes == 1:
        yield [Way("one process", None)]
        return
    replicas = [1] + ([processes // per_machine] if 1 < per_machine < processes else [])
    if experts in (None, 1):
        yield [Way("ddp", None)]
        for copies in replicas:
            yield [sharded_way(processes, copies, True, 1)]
    divisors = [n for n in range(2, sizes.num_experts + 1) if sizes.num_experts % n == 0]
    if experts is not None:
        divisors = [experts] if experts > 1 else []
    if not sizes.routed_layers:
        return
    for shard, copies in ((False, 1), *((True, copies) for copies in replicas)):
        group = processes // copies
        if found := [sharded_way(processes, copies, shard, n) for n in divisors if group % n == 0]:
            yield found


def sharded_way(processes: int, copies: int, shard: bool, experts: int) -> Way:
    """A layout of `makemoe.parallel.Sharded`."""
    names = [f"experts {experts}"] if experts > 1 else []
    names += ["fsdp per machine" if copies > 1 else "fsdp"] if shard else []
    # All of them, because a config may have others.
    options: dict[str, int | bool] = {"experts": experts, "replicate": copies, "shard": shard}
    return Way(" + ".join(names), Layout.of(processes, copies, shard, experts), options)


def forecasts(
    training: Training, processes: int, machines: Machines, experts: int | None = None
) -> list[Forecast]:
    """What is expected of each way; of ways that differ in `experts` only, the best."""
    return [
        best([forecast(training, way, processes, machines) for way in alike])
        for alike in ways(training.sizes, processes, machines.per_machine, experts)
        if training.divides or alike[0].options is None
    ]


def best(found: Sequence[Forecast]) -> Forecast:
    """The fastest that fits, or a simpler one that is as fast; if none fits, the smallest."""
    fitting = [one for one in found if one.fits]
    if not fitting:
        return min(found, key=lambda one: one.memory)
    fastest = min(one.step_s for one in fitting)
    return next(one for one in fitting if one.step_s <= AS_FAST * fastest)
