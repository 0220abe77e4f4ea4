"""`makemoe plan`: memory, bytes and time of a step on devices that are not here.

Options are parsed, and help is shown, without importing torch.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from makemoe.cli.compare import check_words, config_name
from makemoe.cli.parser import OneLineErrors
from makemoe.errors import MissingPackageError, UsageError
from makemoe.files import replacing
from makemoe.hardware import CPU, KINDS, LINKS, NETWORKS

if TYPE_CHECKING:
    from makemoe.cli.machines import Devices
    from makemoe.cli.weightless import Planned
    from makemoe.parallel.forecast import Forecast

NOT_HERE = {
    "--ckpt_path": "give the config of the run",
    "--allow_changed": "nothing is resumed",
    "--print_config": "makemoe fit has it",
    "--help_all": "see makemoe fit --help_all",
    "--trainer.devices": "give --devices, of all machines together",
    "--trainer.num_nodes": "give --devices, of all machines together, and --per_machine",
    "--trainer.strategy": "all are compared",
}
"""Options of fit that a plan does not take, and why."""

MOST_DEVICES = 1 << 20
PER_MACHINE = 8
DRAWN = 1024
"""Devices up to which a picture is drawn, if no more are asked for."""


def plan(arguments: Sequence[str]) -> int:
    """Print the plan, and return the exit status."""
    options, words = parse(arguments)
    from makemoe.cli.machines import devices_of
    from makemoe.cli.plan_page import Plan
    from makemoe.cli.weightless import built, planned_fit, precision_of, settings_of
    from makemoe.parallel.forecast import best, forecasts

    settings = settings_of(words)
    per_machine = min(options.per_machine, options.devices)
    precision = precision_of(settings)
    every = [
        devices_of(options.kind, options.link, network, options.figures, precision, per_machine)
        for network in options.network or [None]
    ]
    net = built(settings, options.vocab_size)
    check_experts(options.experts, net.num_experts if net.routers() else 0, options.devices)
    fit = planned_fit(settings, net, options.devices)
    if not fit.training.divides and (options.experts or 1) > 1:
        raise UsageError(
            f"--experts {options.experts}: experts are not divided with --trainer.precision "
            f"{precision}: use bf16-mixed, for example"
        )
    found = forecasts(fit.training, options.devices, every[0].machines, options.experts)
    chosen = best(found)
    if not chosen.fits:
        more = (planned_fit(settings, net, number) for number in doubled(options))
        raise UsageError(too_large(options, more, every[0], chosen))
    outcome = Plan(fit, every[0], options.devices, found, chosen, words)
    if options.picture is not None:
        draw(options, fit, every)
    print(json.dumps(outcome.as_plain(), indent=2) if options.json else "\n".join(outcome.lines()))
    return 0


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of plan, and those of fit, which describe what is trained.

    Raises:
        UsageError: for what is wrong without looking at the config.
    """
    own = parser()
    options, words = own.parse_known_args(arguments)
    check_words(words, own, "plan", NOT_HERE)
    if not config_name(words):
        raise UsageError("--config is missing: which config to plan? (try quickstart)")
    for name in ("devices", "per_machine"):
        if not 1 <= (count := getattr(options, name)) <= MOST_DEVICES:
            raise UsageError(f"--{name} {count}: use 1 to {MOST_DEVICES}")
    for name in ("experts", "vocab_size"):
        if (given := getattr(options, name)) is not None and given < 1:
            raise UsageError(f"--{name} {given}: use 1 or more")
    machines, rest = divmod(options.devices, options.per_machine)
    if machines and rest:
        raise UsageError(
            f"--devices {options.devices} is not a multiple of --per_machine "
            f"{options.per_machine}: all machines have as many devices"
        )
    if options.picture is not None and not options.picture.endswith(".png"):
        raise UsageError(f"--picture {options.picture} is not a PNG file: end its name in .png")
    return options, words


def parser() -> argparse.ArgumentParser:
    """The parser of plan's own options."""
    own = OneLineErrors(
        prog="makemoe plan",
        allow_abbrev=False,
        description="Predict, for a config on some devices: memory per device, bytes sent and "
        "seconds per step, and efficiency, for every strategy; and print the command for the "
        "fastest that fits. Nothing is trained, and the devices need not be here. Options of fit "
        "are taken too. What is assumed is printed; docs/scaling.md explains it.",
    )
    add = own.add_argument
    add("--devices", metavar="N", type=int, default=8, help="in all machines (%(default)s)")
    add(
        "--per_machine",
        metavar="N",
        type=int,
        default=PER_MACHINE,
        help="devices in a machine (%(default)s, or as many as there are)",
    )
    add(
        "--device",
        metavar="KIND",
        dest="kind",
        default=next(iter(KINDS)),
        help=f"{', '.join([*KINDS, CPU])} (%(default)s); {CPU} is the processor of this machine",
    )
    add(
        "--link",
        metavar="NAME",
        help=f"between devices of a machine: {', '.join(LINKS)} (default: the kind's)",
    )
    add(
        "--network",
        metavar="NAME",
        action="append",
        help=f"between machines: {', '.join(NETWORKS)} (default: the kind's); may be repeated: "
        "the table is for the first, the picture shows all",
    )
    add(
        "--figures",
        metavar="FILE",
        help="YAML file of figures that replace those of the kind, such as tflops: 400",
    )
    add(
        "--experts",
        metavar="N",
        type=int,
        help="only strategies that divide the experts among N devices; 1: none that divides them",
    )
    add("--vocab_size", metavar="N", type=int, help="symbols (default: those of the text)")
    add(
        "--picture",
        metavar="FILE",
        help=f"draw the efficiency on 2 to {DRAWN} devices, or more, as PNG",
    )
    add("--json", action="store_true", help="print everything as one JSON object")
    return own


def check_experts(experts: int | None, num_experts: int, devices: int) -> None:
    """Raise UsageError if the experts cannot be divided among so many devices."""
    if experts is None or experts == 1:
        return
    if not num_experts:
        raise UsageError(f"--experts {experts}: the model has no layer that routes tokens")
    for name, count in (("model.num_experts", num_experts), ("devices", devices)):
        if count % experts:
            raise UsageError(f"--experts {experts} does not divide --{name} {count}: use a divisor")


def doubled(options: argparse.Namespace) -> Iterator[int]:
    """More devices, where there can be more."""
    number = in_machines(2 * options.devices, options.per_machine)
    while options.kind != CPU and number <= MOST_DEVICES:
        yield number
        number = in_machines(2 * number, options.per_machine)


def in_machines(devices: int, per_machine: int) -> int:
    """So many devices, or as many more as fill all machines."""
    return devices if devices <= per_machine else -(-devices // per_machine) * per_machine


def too_large(
    options: argparse.Namespace, more: "Iterator[Planned]", devices: "Devices", least: "Forecast"
) -> str:
    """That no strategy fits, and how many devices it would take.

    Args:
        options: of the command.
        more: the same fit on more devices.
        devices: their figures.
        least: what takes the least memory.
    """
    from makemoe.cli.plan_page import in_bytes
    from makemoe.parallel.forecast import best, forecasts

    why = (
        f"--devices {options.devices}: no strategy fits the {in_bytes(least.limit)} that may be "
        f"used of each; the least takes {in_bytes(least.memory)} ({least.way.name})"
    )
    for number, fit in zip(doubled(options), more, strict=True):
        machines = devices.machines._replace(per_machine=min(number, options.per_machine))
        if best(forecasts(fit.training, number, machines, options.experts)).fits:
            return f"{why}: {number} would do"
    return f"{why}: use a smaller model or batch"


def draw(options: argparse.Namespace, fit: "Planned", every: "Sequence[Devices]") -> None:
    """Draw the efficiency over the number of devices, each with as many tokens as planned."""
    from makemoe.parallel.forecast import forecasts

    try:
        from makemoe.pictures.scaling import Panel, draw_scaling
    except ImportError as error:
        raise MissingPackageError(
            "--picture needs matplotlib: pip install 'makemoe[plots]'"
        ) from error
    most, numbers = max(DRAWN, options.devices), [in_machines(2, options.per_machine)]
    while (number := in_machines(2 * numbers[-1], options.per_machine)) <= most:
        numbers.append(number)
    panels = []
    for devices in every:
        lines: dict[str, list[tuple[int, float]]] = {}
        for number in numbers:
            machines = devices.machines._replace(per_machine=min(number, options.per_machine))
            for one in forecasts(fit.training, number, machines):
                points = lines.setdefault(one.way.family, [])
                points += [(number, one.efficiency)] if one.fits else []
        machines = devices.machines
        panels.append(Panel(f"{machines.link.name}; {machines.network.name}", lines))
    title = f"{devices.name}, {options.per_machine} per machine"
    with replacing(Path(options.picture)) as file:
        draw_scaling(title, panels).savefig(file, format="png")
