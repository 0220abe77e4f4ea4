"""What `makemoe plan` prints: lines, or plain values for JSON."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from makemoe.cli.machines import Devices
from makemoe.cli.weightless import Planned
from makemoe.hardware import MICRO
from makemoe.parallel.forecast import ROOM, Forecast, Way
from makemoe.sizes import with_prefix

COLUMN = 10
"""Width of the first column of the page."""

SHORT_S = 0.005
"""A step of fewer seconds depends on what is not counted."""

HEAD = (
    "per device",
    "memory",
    "sent",
    "products",
    "update",
    "weights",
    "tokens",
    "step",
    "efficiency",
)


class Plan(NamedTuple):
    """What is known of a fit on some devices.

    Attributes:
        fit: what is trained.
        devices: of which kind.
        number: of devices.
        found: what is expected of each strategy.
        chosen: the one to use.
        words: the options of fit that describe it.
    """

    fit: Planned
    devices: Devices
    number: int
    found: Sequence[Forecast]
    chosen: Forecast
    words: Sequence[str]

    def lines(self) -> Iterator[str]:
        """The page."""
        fit, step, machines = self.fit, self.fit.training.step, self.devices.machines
        work, network = fit.work, machines.network
        several = self.number // machines.per_machine
        yield from told(
            "model",
            f"{counted(work.parameters)} parameters, {counted(work.active)} active; "
            f"{counted(work.flops)} FLOPs per token",
        )
        batches = f" x {step.batches} batches" if step.batches > 1 else ""
        raised = f" (the config has {fit.raised}, fewer than devices)" if fit.raised else ""
        yield from told(
            "step",
            f"{fit.windows} windows of {fit.block_size} tokens{batches}{raised}; {step.tokens} "
            f"tokens per device{' and batch' if batches else ''}; {fit.precision}",
        )
        yield from told(
            "devices",
            f"{several} x {machines.per_machine} {self.devices.name}: "
            f"{with_prefix(machines.flops)}FLOP/s, {in_bytes(machines.memory)} "
            f"({self.devices.source})",
        )
        if machines.per_machine > 1:
            yield from told("link", f"{machines.link.name}, {in_bytes(machines.link.rate)}/s")
        if several > 1:
            yield from told("network", f"{network.name}, {in_bytes(network.rate)}/s")
        yield from ("", *self.table(), "")
        yield from told("best", f"{self.chosen.way.name}: {self.why()}")
        yield from told("use", self.command(self.chosen.way))
        if several > 1:
            how = "on each machine, with MASTER_ADDR, MASTER_PORT and NODE_RANK set"
            yield from told("", how)
        yield ""
        yield from told("assumed", *self.assumed())

    def table(self) -> Iterator[str]:
        """A line per strategy; the chosen one has an asterisk."""
        rows: list[Sequence[str]] = [HEAD]
        for one in self.found:
            times = one.compute_s, one.update_s, one.waiting_s, one.exchange_s, one.step_s
            share = f"{one.efficiency:.0%}" if one.fits else "does not fit"
            mark = " *" if one is self.chosen else ""
            numbers = in_bytes(one.memory), in_bytes(one.nbytes), *map(in_time, times)
            rows.append((f"{one.way.name}{mark}", *numbers, share))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join([first.strip().ljust(widths[0]), *others])

    def why(self) -> str:
        """Why the chosen strategy is chosen."""
        fitting = [one for one in self.found if one.fits]
        others = [one for one in fitting if one is not self.chosen]
        if len(self.found) == 1:
            return "there is nothing to divide"
        if not others:
            return "no other fits"
        second = min(others, key=lambda one: one.step_s)
        times = second.step_s / self.chosen.step_s
        if times < 1.005:
            return f"no other that fits is faster by 1 %, and it is simpler than {second.way.name}"
        return f"the fastest that fits; {second.way.name} takes {times:.2f} times as long"

    def command(self, way: Way) -> str:
        """The command that trains in this way."""
        machines = self.devices.machines
        added = [f"--trainer.accelerator={self.devices.accelerator}"]
        added.append(f"--trainer.devices={machines.per_machine}")
        if (several := self.number // machines.per_machine) > 1:
            added.append(f"--trainer.num_nodes={several}")
        if way.options is not None:
            added.append("--trainer.strategy.class_path=makemoe.parallel.Sharded")
            for name, value in way.options.items():
                added.append(f"--trainer.strategy.init_args.{name}={str(value).lower()}")
        elif self.number > 1:
            added.append("--trainer.strategy=ddp")
        elif self.fit.has_strategy:
            added.append("--trainer.strategy=auto")
        if self.fit.raised:
            added.append(f"--data.batch_size={self.fit.windows}")
        return shlex.join(["makemoe", "fit", *self.words, *added])

    def assumed(self) -> Iterator[str]:
        """What the figures take for granted."""
        machines = self.devices.machines
        yield (
            f"products reach {machines.share:.0%} of the peak, and experts are loaded evenly; "
            "efficiency is the share of products in the step"
        )
        yield (
            "`weights` is the time in which only weights and gradients are sent: they are sent "
            f"during {machines.overlap:.0%} of the computing, too; tokens are not"
        )
        yield (f"memory is a lower bound, and {ROOM:.0%} of a device's may be used")
        latencies = [machines.start, machines.link.latency, machines.network.latency]
        start, link, network = (f"{latency / MICRO:.3g} us" for latency in latencies)
        yield f"a collective takes {start}, {link} per hop in a machine, {network} between machines"
        yield f"not counted: {', '.join([*self.fit.notes, 'metrics', 'validation', 'saving'])}"
        if self.chosen.step_s < SHORT_S:
            yield (
                "so short a step depends on the launch of its kernels, which is not counted: "
                "expect it to take longer"
            )

    def as_plain(self) -> dict[str, Any]:
        """Everything as plain values, in bytes and seconds."""
        work, machines = self.fit.work, self.devices.machines
        figures = machines._asdict()
        figures |= {name: figures[name]._asdict() for name in ("link", "network")}
        return {
            "parameters": work.parameters,
            "active": work.active,
            "flops_per_token": work.flops,
            "windows": self.fit.windows,
            "tokens_per_device": self.fit.training.step.tokens,
            "batches": self.fit.training.step.batches,
            "devices": self.number,
            "device": self.devices.name,
            "figures": figures,
            "best": self.chosen.way.name,
            "strategies": [
                {
                    "name": one.way.name,
                    "fits": one.fits,
                    "memory": one.stored,
                    "sent": {sent.what: sent.nbytes for sent in one.sent},
                    "products_s": one.compute_s,
                    "update_s": one.update_s,
                    "weights_s": one.waiting_s,
                    "tokens_s": one.exchange_s,
                    "step_s": one.step_s,
                    "efficiency": one.efficiency,
                    "command": self.command(one.way),
                }
                for one in self.found
            ],
        }


def told(name: str, *lines: str) -> Iterator[str]:
    """Lines beside a name."""
    for line in lines:
        yield f"{name:{COLUMN}}{line}"
        name = ""


def counted(number: float) -> str:
    """A number in three digits."""
    return with_prefix(number).rstrip()


def in_bytes(nbytes: float) -> str:
    """A number of bytes, in powers of 1000 as in data sheets."""
    return f"{with_prefix(nbytes)}B" if nbytes else "-"


def in_time(seconds: float) -> str:
    """A time in three digits."""
    if not seconds:
        return "-"
    size, unit = next(
        (one for one in ((1.0, "s"), (1e-3, "ms")) if seconds >= one[0]), (MICRO, "us")
    )
    return f"{with_prefix(seconds / size)}{unit}" if seconds < 1000 else f"{seconds:,.0f} s"
