"""`python -m benchmarks [--row NAME]`: measure, print a table, write it as JSON."""

import argparse
import math
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import machine, report
from benchmarks.equality import NotEqualError, check_models
from benchmarks.measure import Bench
from benchmarks.report import Result
from benchmarks.rows import ON_ANY_DEVICE, ON_CPU, ONLY_IF_NAMED, ROWS, Row
from benchmarks.scripts import Options
from benchmarks.scripts import run as run_script
from makemoe.training.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested rows; return 1 if the baseline is not the same model."""
    options = parse(arguments)
    has_gpu = torch.cuda.is_available()
    try:
        for device in ("cpu", "cuda") if has_gpu else ("cpu",):
            check_models(device)
    except NotEqualError as error:
        print(f"benchmarks: error: not timed: {error}", file=sys.stderr)
        return 1
    keep_freed_memory()  # as `makemoe fit` does; all sides benefit
    jobs = [(row, "cpu") for row in (*ON_ANY_DEVICE, *ON_CPU)]
    jobs += [(row, "cuda") for row in ON_ANY_DEVICE]
    if options.row is not None:
        jobs += [(row, "cpu") for row in ONLY_IF_NAMED]
        jobs = [(row, device) for row, device in jobs if row.__name__ == options.row]
    rows: dict[str, list[Result]] = {}
    with tqdm(jobs, file=sys.stderr, unit="row", bar_format="{bar:20} {n}/{total} {desc}") as bar:
        for row, device in bar:
            name = f"{row.__name__}{' on a GPU' * (device == 'cuda')}"
            if device == "cuda" and not has_gpu:
                rows[name] = [Result(name, note="not measured (no CUDA device)")]
            else:
                rows[name] = run(
                    row, Bench(device, options.seconds, options.quick, partial(say, bar)), name
                )
    print(report.table([result for results in rows.values() for result in results]))
    print()
    print(*(f"{name}: {limit:.3g}" for name, limit in machine.LIMITS.items()), sep="\n")
    now = datetime.now(UTC)
    name = f"{machine.machine_name()}-{now:%Y-%m-%d}{'-quick' * options.quick}.json"
    path = options.results / name
    report.write(path, about(now, options.seconds), rows)
    return 0


def run(row: Row, bench: Bench, name: str) -> list[Result]:
    """The lines of a row; if it fails, one line that says why."""
    try:
        return row(bench)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [Result(name, note=f"failed: {reason}")]


def say(bar: Any, what: str) -> None:
    bar.set_description_str(what)


def about(now: datetime, seconds: float) -> dict[str, Any]:
    """The versions and settings used for a measurement."""
    packages = ("torch", "lightning", "transformers")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "measured": now.isoformat(timespec="seconds"),
        "seconds_per_comparison": seconds,
        "threads": torch.get_num_threads(),
        "bf16_instructions": machine.bf16_instructions(),
        "versions": versions,
        "limits": dict(machine.LIMITS),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    width = max(len(row.__name__) for row in ROWS)
    listing = "\n".join(f"  {row.__name__.ljust(width)}  {row.__doc__}" for row in ROWS)
    asked = ", ".join(row.__name__ for row in ONLY_IF_NAMED)
    parser = Options(
        "benchmarks",
        description="Measure, print a table, write it as JSON.",
        epilog=f"rows (all but {asked} are measured if none is named):\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [row.__name__ for row in ROWS]
    add = parser.add_argument
    add("--row", choices=names, metavar="NAME", help="this one only")
    add("--seconds", type=seconds, default=4.0, help="for each comparison (%(default)s)")
    add("--quick", action="store_true", help="only see whether it runs: small, no true figures")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON goes")
    return parser.parse_args(arguments)


def seconds(text: str) -> float:
    """The type of an option that is a duration."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is out of range: use 0 or more")
    return value


if __name__ == "__main__":
    run_script("benchmarks", main)
