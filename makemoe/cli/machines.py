"""The devices of a plan: figures of data sheets, of this processor, or of the user's own."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from makemoe.cli.parser import did_you_mean
from makemoe.cli.strict_yaml import read_yaml
from makemoe.errors import UsageError
from makemoe.hardware import CPU, GIGA, KINDS, LINKS, MICRO, NETWORKS, TERA, Link
from makemoe.machine import memory
from makemoe.parallel.forecast import Machines
from makemoe.training.peak import peak_flops

SHARE, OVERLAP = 0.4, 0.8
"""Assumed share of the peak that products reach, and of computing during which weights are sent."""

START_US = 8.4
"""NCCL's own estimate of what a ring for large messages takes before its hops (`baseLat`)."""

FIGURES: dict[str, tuple[str, float]] = {
    "tflops": ("flops", TERA),
    "compute_share": ("share", 1),
    "memory_gb": ("memory", GIGA),
    "memory_gb_per_s": ("memory_rate", GIGA),
    "link_gb_per_s": ("link.rate", GIGA),
    "link_us": ("link.latency", MICRO),
    "network_gb_per_s": ("network.rate", GIGA),
    "network_us": ("network.latency", MICRO),
    "start_us": ("start", MICRO),
    "overlap": ("overlap", 1),
}
"""Figures that a user can give: where they belong, and their unit."""

MOST = 1e100
SHARES = "compute_share", "overlap"
MAY_BE_ZERO = "overlap", "link_us", "network_us", "start_us"

MEASURED_S = 0.2
MATRIX, COPIED = 1024, 16 << 20
"""Rows of the matrices, and numbers of the buffer, by which this processor is measured."""


class Devices(NamedTuple):
    """Devices of one kind.

    Attributes:
        name: of the kind.
        machines: their figures, and how many are in a machine.
        source: where the figures come from.
        accelerator: what the Trainer calls them.
    """

    name: str
    machines: Machines
    source: str
    accelerator: str = "gpu"


def devices_of(
    kind: str,
    link: str | None,
    network: str | None,
    figures: str | None,
    precision: str,
    per_machine: int,
) -> Devices:
    """The devices that a user asks for.

    Args:
        kind: a key of KINDS, or `cpu`.
        link: a key of LINKS; None: what is usual.
        network: a key of NETWORKS; None: what is usual.
        figures: a file of figures that replace those of the kind; None: none.
        precision: the Trainer's precision.
        per_machine: how many are in a machine.

    Raises:
        UsageError: for a name or a file that is not known, or a rate that is not.
    """
    own = {} if figures is None else read_figures(figures)
    if kind == CPU:
        found = this_processor(precision, per_machine)
        if link is not None:
            raise UsageError(f"--link {link}: processes on a CPU share its memory: omit it")
        machines = found.machines
    else:
        known = named("--device", kind, KINDS | {CPU: None})
        assert known is not None
        peak = peak_flops(known.name, precision, tf32=False)
        if peak is None and "tflops" not in own:
            raise UsageError(
                f"--trainer.precision {precision}: no rate of {known.name} is known for it: use "
                "bf16-mixed, or give tflops in --figures"
            )
        machines = Machines(
            flops=peak or 0.0,
            share=SHARE,
            memory=known.memory,
            memory_rate=known.memory_rate,
            link=named("--link", link or known.link, LINKS),
            network=NETWORKS[known.network],
            start=START_US * MICRO,
            overlap=OVERLAP,
            per_machine=per_machine,
        )
        found = Devices(known.name, machines, "data sheets")
    if network is not None:
        machines = machines._replace(network=named("--network", network, NETWORKS))
    source = f"{found.source}, {figures}" if own else found.source
    return found._replace(machines=with_figures(machines, own), source=source)


def named(option: str, name: str, known: dict[str, Any]) -> Any:
    """What a table has under a name; UsageError if it has nothing."""
    if name not in known:
        near = did_you_mean(name, known) or f": known are {', '.join(known)}"
        raise UsageError(f"{option} {name}: unknown{near}; or give its figures with --figures")
    return known[name]


def read_figures(path: str) -> dict[str, float]:
    """The figures in a YAML file; UsageError for what is not a figure."""
    option = f"--figures {path}"
    _, values = read_yaml(option, path)
    if not isinstance(values, dict) or not values:
        raise UsageError(f"{option}: contains no figures, such as tflops: 100")
    for name, value in values.items():
        if name not in FIGURES:
            near = did_you_mean(name, FIGURES) or f": known are {', '.join(FIGURES)}"
            raise UsageError(f"{option}: unknown figure {name}{near}")
        is_number = type(value) in (int, float) and abs(value) < MOST
        if not is_number or value < 0 or (value == 0 and name not in MAY_BE_ZERO):
            least = "0 or more" if name in MAY_BE_ZERO else "more than 0"
            raise UsageError(f"{option}: {name} {value!r} is not a number of {least}")
        if name in SHARES and value > 1:
            raise UsageError(f"{option}: {name} {value} is a share: use 1 or less")
    return values


def with_figures(machines: Machines, figures: dict[str, float]) -> Machines:
    """The same devices with other figures."""
    for name, value in figures.items():
        place, unit = FIGURES[name]
        outer, _, inner = place.partition(".")
        changed: Any = value * unit
        if inner:
            link: Link = getattr(machines, outer)
            changed = link._replace(**{inner: changed}, shared=link.shared and inner != "rate")
        machines = machines._replace(**{outer: changed})
    return machines


# -- this machine


def this_processor(precision: str, processes: int) -> Devices:
    """This machine's processor, measured in half a second, divided among processes.

    What connects them is its memory: what is sent is written and read once more.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // processes))
    try:
        dtype = torch.bfloat16 if "16" in precision else torch.float32
        a, b = torch.randn(MATRIX, MATRIX).to(dtype), torch.randn(MATRIX, MATRIX).to(dtype)
        flops = 2 * MATRIX**3 / best(lambda: torch.mm(a, b))
        source = torch.zeros(COPIED)
        target = torch.empty_like(source)
        rate = 2 * source.nbytes / best(lambda: target.copy_(source))
    finally:
        torch.set_num_threads(threads)
    machines = Machines(
        flops=flops,
        share=SHARE,
        memory=memory().machine / processes,
        memory_rate=rate,
        link=Link("its memory", rate / 4, 0.0),
        network=NETWORKS["ethernet10"],
        start=START_US * MICRO,
        overlap=0.0,
        per_machine=processes,
    )
    return Devices("process of this CPU", machines, "measured now", CPU)


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs."""
    fastest, begin = float("inf"), time.perf_counter()
    while time.perf_counter() < begin + MEASURED_S:
        before = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - before)
    return fastest
