"""`makemoe compare`: variants of a config, trained side by side. Does not import torch.

What needs torch is done in processes: `makemoe.cli.examine` and `makemoe fit`.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from makemoe.cli.configs import config_file
from makemoe.cli.interrupts import PARENT_VARIABLE
from makemoe.cli.parser import OneLineErrors, add_root_option, did_you_mean
from makemoe.errors import DataError, UsageError
from makemoe.files import STANDARD_INPUT
from makemoe.machine import cores
from makemoe.run import RunSettings
from makemoe.search.folder import PICTURE, CompareFolder, choose, known_variants
from makemoe.search.plan import Plan, Variant, about
from makemoe.search.results import Result, are_comparable, as_plain, differ_in_text, result_of
from makemoe.search.runs import QUIET, Run
from makemoe.search.side_by_side import SideBySide, say, say_in_passing
from makemoe.search.table import DIFFERENT_TEXTS, plan_table, table
from makemoe.search.variants import combinations, folder_name, read_vary, words_of

NOT_HERE = {
    "--ckpt_path": "every variant is trained from scratch; call {command} again to go on",
    "--allow_changed": "every variant is trained from scratch",
    "--print_config": "each run's folder has a config.yaml",
    "--help_all": "see makemoe fit --help_all",
}
"""Options of fit that comparisons and sweeps do not take, and why."""

OF_FIT = ("--config", "--seed", "--trust")
"""Options of fit that belong to no group, and that comparisons and sweeps take."""

MOST_SEEDS = 1000


def compare(arguments: Sequence[str]) -> int:
    """Plan, train, print the table, and return the exit status."""
    options, words = parse(arguments)
    default = f"compare-{name_of(options, words)}"
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="makemoe-") as scratch:
        status = examine(request(options, words, default), Path(scratch), options.jobs)
        if status:
            return status
        plan = Plan.of_plain(json.loads((Path(scratch) / "plan.json").read_text()))
    path = choose(plan, options.root, options.name, default)
    command = shlex.join(["makemoe", "compare", *arguments])
    if options.dry_run:
        introduce(plan, path, side_by_side(plan, path, options.jobs))
        return 0
    with CompareFolder(path) as folder:
        folder.write_plan(plan)
        beside = side_by_side(plan, path, options.jobs)

        def keep() -> list[Result]:
            results = [result_of(variant, beside.runs) for variant in plan.variants]
            folder.write_results({"command": command} | as_plain(plan, results))
            return results

        introduce(plan, path, beside)
        beside.train(keep)
        results = keep()
        draw(plan, results, path / PICTURE)
    if any(run.has_ended for run in beside.runs):
        print("\n".join(table(results, room(sys.stdout))), flush=True)
    if beside.stopped_by is not None:
        say(f"{beside.stopped_by.name}: stopped; to go on, give the same command again")
        return 128 + beside.stopped_by
    return 1 if any(not run.is_finished for run in beside.runs) else 0


def side_by_side(plan: Plan, path: Path, jobs: int) -> SideBySide:
    """The runs of a plan, as far as they are."""
    runs = [Run(path, variant, seed) for seed in plan.seeds for variant in plan.variants]
    return SideBySide(runs, jobs, environment(jobs))


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an error would, so that it cleans up."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of compare, and those of fit, which are passed on.

    Raises:
        UsageError: for what is wrong without looking at the variants.
    """
    own = parser()
    options, words = own.parse_known_args(arguments)
    check_words(words, own, "compare")
    if not 1 <= options.seeds <= MOST_SEEDS:
        raise UsageError(f"--seeds {options.seeds}: use 1 to {MOST_SEEDS}")
    if options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: use 1 or more")
    if len(set(options.twin)) < len(options.twin):
        raise UsageError(f"--twin {options.twin[0]} is given twice")
    options.vary = [read_vary(text) for text in options.vary]
    if not name_of(options, words):
        raise UsageError(
            "--config is missing: which config to compare variants of? (try quickstart)"
        )
    RunSettings(root=options.root, name=options.name)
    return options, words


def check_words(
    words: Sequence[str],
    own: argparse.ArgumentParser,
    command: str,
    not_here: Mapping[str, str] = NOT_HERE,
) -> None:
    """Refuse options that are not passed on to every run.

    Args:
        words: what is left of the command line.
        own: the parser of the command's own options.
        command: its name.
        not_here: options of fit that it does not take, and why.

    Raises:
        UsageError: naming the option.
    """
    for word in words:
        option = word.partition("=")[0]
        if option in not_here:
            raise UsageError(
                f"{option} is not for {command}: {not_here[option].format(command=command)}"
            )
        if option.startswith("--") and "." not in option and option not in OF_FIT:
            near = did_you_mean(option, [*own._option_string_actions, *OF_FIT])
            raise UsageError(f"unknown option {option}{near or f': see makemoe {command} --help'}")
    for place, word in enumerate(words):
        if word.startswith(("--data.corpus", "--data.test_corpus")):
            value = word.partition("=")[2] or " ".join(words[place + 1 : place + 2])
            if value == STANDARD_INPUT:
                raise UsageError(
                    f"{word}: standard input cannot be shared by several runs: save the text to a "
                    "file"
                )


def parser() -> argparse.ArgumentParser:
    """The parser of compare's own options."""
    own = OneLineErrors(
        prog="makemoe compare",
        allow_abbrev=False,
        description="Train variants of a config side by side, at equal tokens or equal "
        "floating-point operations, for several seeds, and print one table: mean and sample "
        "standard deviation of the validation loss. Options of fit are passed on to every run. "
        "Stopped, and called again with the same words, it goes on.",
    )
    add = own.add_argument
    add(
        "--vary",
        metavar="KEY=A,B",
        action="append",
        default=[],
        help="option of fit and its values, such as model.num_experts=4,8; may be repeated: every "
        "combination is trained; a value with commas is in brackets or quotes",
    )
    add("--seeds", metavar="N", type=int, default=1, help="runs per variant (%(default)s)")
    add(
        "--equal",
        choices=("tokens", "flops"),
        default="tokens",
        help="what every run gets as much of as the first variant: tokens, or floating-point "
        "operations (%(default)s)",
    )
    add(
        "--twin",
        choices=("active", "total"),
        action="append",
        default=[],
        help="add the dense model with as many parameters as are active for a token, or as there "
        "are in total; may be repeated",
    )
    add("--jobs", metavar="N", type=int, default=1, help="runs at a time (%(default)s)")
    add("--dry_run", action="store_true", help="print the plan, and train nothing")
    add(
        "--run.name",
        metavar="NAME",
        dest="name",
        help="folder of the comparison (compare-CONFIG, with a number if that is another one)",
    )
    add_root_option(own)
    return own


def name_of(options: argparse.Namespace, words: Sequence[str]) -> str:
    """The name of the first config file; if there is none, of the first that is varied."""
    varied = [value for vary in options.vary if vary.key == "config" for value in vary.values]
    return config_name(words) or config_name([f"--config={value}" for value in varied])


def config_name(words: Sequence[str]) -> str:
    """The name of the first config file; empty if there is none.

    Raises:
        UsageError: for the name of a file or bundled config that does not exist.
    """
    names = [path.stem for path in config_files(words)]
    return names[0] if names else ""


def config_files(words: Sequence[str]) -> list[Path]:
    """The config files of a command line; UsageError for one that does not exist."""
    flags = [b for a, b in pairwise(words) if a in ("-c", "--config")]
    flags += [a.partition("=")[2] for a in words if a.startswith("--config=")]
    return [Path(config_file(flag)) for flag in flags]


def request(options: argparse.Namespace, words: list[str], default: str) -> dict[str, Any]:
    """What is to be examined."""
    known = known_variants(options.root, options.name, default)
    choices = combinations(options.vary)
    return {
        "variants": [
            {
                "name": choice.name or name_of(options, words),
                "folder": folder_name(choice.name or name_of(options, words)),
                "varied": list(choice.values),
                "words": words_of(choice, words),
            }
            for choice in choices
        ],
        "quiet": QUIET,
        "seeds": options.seeds,
        "equal": options.equal,
        "twins": options.twin,
        "known": [known_of(variant) for variant in known],
    }


def known_of(variant: Variant) -> dict[str, Any]:
    """What is known of a variant of an earlier call."""
    timing = variant.timing
    return {
        "name": variant.name,
        "twin_of": list(variant.twin.names) if variant.twin else [],
        "settings": variant.settings,
        "timing": timing and asdict(timing),
    }


def examine(
    wanted: dict[str, Any], scratch: Path, jobs: int, module: str = "makemoe.cli.examine"
) -> int:
    """Check, count and time the variants in a process; it writes plan.json to `scratch`."""
    wanted["began"] = time.time()
    (scratch / "request.json").write_text(json.dumps(wanted))
    try:
        ended = subprocess.run(
            [sys.executable, "-m", module, str(scratch)],
            stdin=subprocess.DEVNULL,
            env=environment(jobs),
            check=False,
            # A terminal's Ctrl-C comes to this process alone, which ends that one: while it imports
            # torch, it would print a traceback.
            start_new_session=True,
        ).returncode
    finally:
        say_in_passing("")  # it may have been ended while it showed something
    if ended < 0:
        name = signal.Signals(-ended).name
        raise DataError(
            f"checking the variants was ended by {name} (by the system, if memory ran out)"
        )
    return ended


def environment(jobs: int) -> dict[str, str]:
    """Environment variables of a run: the machine's threads are divided among the runs."""
    own = dict(os.environ) | {PARENT_VARIABLE: str(os.getpid())}
    if jobs > 1:
        own["OMP_NUM_THREADS"] = str(max(1, count_threads() // jobs))
    return own


def count_threads() -> int:
    """The threads that torch would use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isascii() and wanted.isdigit() and int(wanted):
        return int(wanted)
    return cores()


def introduce(plan: Plan, path: Path, beside: SideBySide) -> None:
    """Say what will be trained, and how long that takes."""
    runs, jobs, left = beside.runs, beside.jobs, beside.left()
    rest = [run for run in runs if not run.is_finished]
    tokens = sum(run.variant.tokens for run in rest)
    variants, seeds = counted(len(plan.variants), "variant"), counted(len(plan.seeds), "seed")
    every = f"{variants} x {seeds} = {counted(len(runs), 'run')}"
    ended = f", {len(runs) - len(rest)} of them done" if len(rest) < len(runs) else ""
    time = "not known before the first run has ended" if left is None else about(left)
    at_once = "one after another"
    if jobs > 1:
        threads = counted(int(environment(jobs)["OMP_NUM_THREADS"]), "thread")
        at_once = f"{jobs} at a time with {threads} each"
    lines = [
        *plan_table(plan, room(sys.stderr)),
        "",
        *twins(plan),
        *([f"note    {DIFFERENT_TEXTS}"] if differ_in_text(plan.variants) else []),
        f"runs    {every}{ended}; {tokens:,} tokens to train on, at equal {plan.equal}",
        f"time    {time}, {at_once}" if rest else "time    nothing left to train",
        f"folder  {path}",
    ]
    print("\n".join(lines), file=sys.stderr)


def room(stream: TextIO) -> int | None:
    """Characters in a line of a terminal; None for anything else, which takes all columns."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def twins(plan: Plan) -> list[str]:
    """Which variants share a dense twin."""
    return [
        f"twin    {variant.name}: the twin of {'; '.join(variant.twin.names)}"
        for variant in plan.variants
        if variant.twin and len(variant.twin.names) > 1
    ]


def counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number} {what}{'s' if number != 1 else ''}"


def named(result: Result) -> str:
    """The name of a variant, and how many of its seeds are drawn if some are missing."""
    found, all_ = len(result.curves), len(result.runs)
    return result.variant.name + (f" ({found} of {all_} seeds)" if found < all_ else "")


def draw(plan: Plan, results: Sequence[Result], path: Path) -> None:
    """Draw the learning curves, if matplotlib is installed."""
    try:
        from makemoe.pictures.compared import Compared, Unit, draw_compared
    except ImportError:
        say("no picture: pip install 'makemoe[plots]' draws the learning curves")
        return
    from makemoe.files import replacing

    in_nats = are_comparable(plan.variants)
    curves = [
        Compared(
            named(result),
            result.variant.step_tokens * (result.variant.flops if plan.equal == "flops" else 1),
            list(found.values()),
        )
        for result in results
        if (found := result.curves if in_nats else result.bits)
    ]
    if not curves:
        return
    with replacing(path) as file:
        unit: Unit = "nats per token" if in_nats else "bits per byte"
        draw_compared(curves, plan.equal, len(plan.seeds), unit).savefig(file, format="png")
    say(f"picture {path}, data {path.parent / 'compare.json'}")
