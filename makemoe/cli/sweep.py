"""`makemoe sweep`: a Bayesian search over options of a config. Does not import torch.

What needs torch is done in processes: `makemoe.cli.explore` and `makemoe fit`.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from makemoe.cli.compare import (
    check_words,
    config_name,
    counted,
    ended_by_sigterm,
    environment,
    examine,
    known_of,
    room,
)
from makemoe.cli.configs import config_file
from makemoe.cli.parser import OneLineErrors, add_root_option
from makemoe.errors import DataError, UsageError, WriteError
from makemoe.files import replacing
from makemoe.run import RunSettings
from makemoe.search.database import hidden, reaching, see, without_passwords
from makemoe.search.folder import PLAN, variants_in, write_json
from makemoe.search.plan import Plan, Variant, about
from makemoe.search.runs import ERROR, QUIET, check_unchanged
from makemoe.search.side_by_side import say
from makemoe.search.space import (
    MOST_SEEDS,
    MOST_TRIALS,
    Sweep,
    Value,
    count,
    read_sweep,
    shown,
)
from makemoe.search.study import Attempted, Trials
from makemoe.search.sweep_folder import (
    BEST,
    PICTURE,
    RESULTS,
    STUDY,
    TIMED,
    WORKERS,
    Alive,
    check_folder,
    claim,
    lives,
)
from makemoe.search.sweep_results import best_config, best_of, sweep_as_plain, sweep_table
from makemoe.search.sweeping import Sweeping, time_left

EXPLORE = "makemoe.cli.explore"


def sweep(arguments: Sequence[str]) -> int:
    """Search, print the table, and return the exit status."""
    options, words, wanted = parse(arguments)
    folder = Path(options.root) / (options.name or f"sweep-{config_name(words)}")
    url = wanted.storage or f"sqlite:///{folder / STUDY}"
    if options.show:
        if wanted.storage is None and not (folder / STUDY).exists():
            raise DataError(f"{folder} holds no sweep: begin it without --show")
        with reaching(url), Trials(url, folder.name, wanted, seed=0, create=False) as trials:
            if options.trials is None:
                trials.sweep = replace(wanted, trials=trials.begun_with())
            return show(trials)
    check_folder(folder)
    if wanted.storage is not None:
        see(wanted.storage)  # before what takes longer
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="makemoe-") as scratch:
        status = examine(first_request(words, wanted, folder), Path(scratch), 1, EXPLORE)
        if status:
            return status
        plan = Plan.of_plain(json.loads((Path(scratch) / PLAN).read_text()))
    command = shlex.join(["makemoe", "sweep", *without_passwords(arguments)])
    return Worker(options, words, wanted, plan, folder, url, command).work()


class Worker:
    """One process of `makemoe sweep`.

    Args:
        options: of the command.
        words: options of fit.
        wanted: what is searched.
        plan: the config's variant, and the seeds.
        folder: of the sweep.
        url: of the database.
        command: as the user gave it, but for a password.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        words: list[str],
        wanted: Sweep,
        plan: Plan,
        folder: Path,
        url: str,
        command: str,
    ) -> None:
        self.words, self.wanted, self.plan = words, wanted, plan
        self.folder, self.url, self.command, self.jobs = folder, url, command, options.jobs
        (self.base,) = plan.variants

    def work(self) -> int:
        """Train trials until all have ended; return the exit status."""
        try:
            (self.folder / WORKERS).mkdir(parents=True, exist_ok=True)
            if not (self.folder / TIMED).exists():
                write_json(self.folder / TIMED, self.plan.as_plain())
        except OSError as error:
            raise WriteError(f"in the folder {self.folder}", error) from error
        with reaching(self.url), self.trials() as trials:
            claim(self.folder, trials)
            with Alive(self.folder, trials.worker):
                stopped_by = self.train(trials)
            if stopped_by is not None:
                say(f"{stopped_by.name}: stopped; to go on, give the same command again")
                return 128 + stopped_by
            attempted = self.keep(trials)
            draw(self.wanted, trials, self.folder / PICTURE)
        print("\n".join(sweep_table(self.wanted, attempted, room(sys.stdout))))
        if best_of(attempted) is None:
            return 1
        say(f"best    makemoe fit --config {shlex.quote(str(self.folder / BEST))}")
        return 0

    def trials(self) -> Trials:
        """The trials, of which this process is a worker."""
        return Trials(
            self.url,
            self.folder.name,
            self.wanted,
            self.plan.seeds[0],
            lives=partial(lives, self.folder),
        )

    def train(self, trials: Trials) -> signal.Signals | None:
        """Train until all have ended, or a signal stops it, which is returned."""
        trials.begin(self.base.settings)
        sweeping = Sweeping(
            trials,
            self.look,
            self.plan.seeds,
            self.folder,
            self.jobs,
            environment(self.jobs),
            self.base.seconds,
        )
        self.introduce(trials, sweeping)
        sweeping.work(lambda: self.keep(trials))
        return sweeping.stopped_by

    def look(self, number: int, values: Mapping[str, Value]) -> Variant:
        """Check and count a trial in a process of its own."""
        check_unchanged(self.base.configs)
        name = f"trial-{number:04}"
        searched = [one.word(values[one.key]) for one in self.wanted.space]
        request = a_request(name, [*self.words, *searched], self.wanted)
        request["first"] = asdict(self.base)
        return explored(request, self.jobs).variants[0]

    def introduce(self, trials: Trials, sweeping: Sweeping) -> None:
        """Say what will be searched, and how long that takes."""
        attempted = trials.attempted()
        done = sum(one.has_ended for one in attempted)
        left = sweeping.left(attempted)
        ended = f", {done} of them done" if done else ""
        equal = f"{self.base.tokens:,} tokens each"
        if self.wanted.equal == "flops":
            equal += f", {self.base.flops:,} FLOPs per token by the width of the experts"
        how_long = "not known before the first trial has ended" if left is None else about(left)
        at_once = "one after another" if self.jobs == 1 else f"{self.jobs} at a time"
        lines = [
            *(f"search  {one.told()}" for one in self.wanted.space),
            f"trials  {counted(self.wanted.trials, 'trial')} x "
            f"{counted(self.wanted.seeds, 'seed')}{ended}; {equal}",
            f"time    {how_long}, {at_once}",
            f"folder  {self.folder}, storage {hidden(self.url)}",
        ]
        print("\n".join(lines), file=sys.stderr)

    def keep(self, trials: Trials) -> list[Attempted]:
        """Write the data and the best trial; return all trials."""
        attempted = trials.attempted()
        plain = sweep_as_plain(self.wanted, attempted, trials.importances())
        write_json(self.folder / RESULTS, {"command": self.command} | plain)
        if (best := best_of(attempted)) is not None:
            path = self.folder / BEST
            with replacing(path) as file:
                file.write(best_config(best, self.plan.seeds[0], path, self.command).encode())
        return attempted


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], Sweep]:
    """The options of sweep, those of fit, which are passed on, and what is searched.

    Raises:
        UsageError: for what is wrong without looking at the trials.
    """
    own = parser()
    options, words = own.parse_known_args(arguments)
    check_words(words, own, "sweep")
    wanted, words = without_sweep(words)
    if not config_name(words):
        raise UsageError("--config is missing: which config to search? (try laptop)")
    if options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: use 1 or more")
    if options.trials is not None:
        wanted = replace(wanted, trials=count(options.trials, "--trials", MOST_TRIALS))
    if options.seeds is not None:
        wanted = replace(wanted, seeds=count(options.seeds, "--seeds", MOST_SEEDS))
    if options.storage is not None:
        wanted = replace(wanted, storage=options.storage)
    RunSettings(root=options.root, name=options.name)
    return options, words, wanted


def without_sweep(words: Sequence[str]) -> tuple[Sweep, list[str]]:
    """What the config with the section `sweep` searches, and the words without that config.

    Raises:
        UsageError: if there is no such config, or several.
    """
    from makemoe.cli.strict_yaml import read_settings

    found: list[Sweep] = []
    rest: list[str] = []
    place = 0
    while place < len(words):
        word, used = words[place], 1
        value: str | None = None
        if word in ("-c", "--config") and place + 1 < len(words):
            value, used = words[place + 1], 2
        elif word.startswith("--config="):
            value = word.partition("=")[2]
        settings = read_settings(config_file(value)) if value is not None else {}
        if "sweep" in settings:
            others = [key for key in settings if key != "sweep"]
            if others:
                raise UsageError(
                    f"--config {value}: a config with sweep holds nothing else: put "
                    f"{', '.join(others)} into another one"
                )
            try:
                found.append(read_sweep(settings["sweep"]))
            except UsageError as error:
                raise UsageError(f"--config {value}: {error}") from error
        else:
            rest += words[place : place + used]
        place += used
    if len(found) != 1:
        how = "given twice" if found else "missing"
        raise UsageError(
            f"a config with the section sweep is {how}: give one, such as --config sweep"
        )
    return found[0], rest


def parser() -> argparse.ArgumentParser:
    """The parser of sweep's own options."""
    own = OneLineErrors(
        prog="makemoe sweep",
        allow_abbrev=False,
        description="Search options of a config for the lowest validation loss, by Bayesian "
        "optimisation with Optuna: one --config is what to train, another one what to search "
        "(bundled: sweep). Options of fit are passed on to every trial. Stopped, and called again "
        "with the same words, it goes on; called several times at once, the trials are shared.",
    )
    add = own.add_argument
    add("--trials", metavar="N", type=int, help="number of trials in all (as in the config)")
    add("--seeds", metavar="N", type=int, help="runs per trial, whose mean counts")
    add(
        "--storage",
        metavar="URL",
        help="database of the trials, such as postgresql+psycopg://user@host/name, which several "
        "machines may share (a file in the folder of the sweep)",
    )
    add("--jobs", metavar="N", type=int, default=1, help="trials at a time (%(default)s)")
    add("--show", action="store_true", help="print the table of a sweep that runs or has ended")
    add("--run.name", metavar="NAME", dest="name", help="folder of the sweep (sweep-CONFIG)")
    add_root_option(own)
    return own


def explored(request: dict[str, Any], jobs: int) -> Plan:
    """The plan of a trial, made by a process of its own.

    Raises:
        DataError: with its words, for a trial that fit would refuse.
    """
    with tempfile.TemporaryDirectory(prefix="makemoe-") as scratch:
        request["began"] = time.time()
        (Path(scratch) / "request.json").write_text(json.dumps(request))
        ended = subprocess.run(
            [sys.executable, "-m", EXPLORE, scratch],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(jobs),
            text=True,
            errors="replace",
            check=False,
            start_new_session=True,  # a terminal's Ctrl-C comes to this process alone
        )
        if ended.returncode:
            told = [line for line in ended.stderr.splitlines() if line.startswith(ERROR)]
            why = told[-1].removeprefix(ERROR) if told else f"exit status {ended.returncode}"
            raise DataError(why)
        return Plan.of_plain(json.loads((Path(scratch) / PLAN).read_text()))


def a_request(name: str, words: list[str], wanted: Sweep) -> dict[str, Any]:
    """What the process that explores is asked for."""
    return {
        "variants": [{"name": name, "words": words}],
        "quiet": QUIET,
        "seeds": wanted.seeds,
        "equal": "tokens",
        "narrows": wanted.equal == "flops",
        "twins": [],
        "probes": [],
        "first": None,
        "known": [],
    }


def first_request(words: list[str], wanted: Sweep, folder: Path) -> dict[str, Any]:
    """The config, and each option at the ends of its range."""
    request = a_request(config_name(words), words, wanted)
    request["probes"] = [
        {"name": f"sweep.space.{one.key} {value}", "word": one.word(value)}
        for one in wanted.space
        for value in one.ends()
    ]
    request["known"] = [known_of(variant) for variant in variants_in(folder, TIMED)]
    return request


def show(trials: Trials) -> int:
    """Print the table of the trials so far, and how long the rest takes."""
    attempted = trials.attempted()
    print("\n".join(sweep_table(trials.sweep, attempted, room(sys.stdout))))
    done = sum(one.has_ended for one in attempted)
    running = sum(one.state == "running" for one in attempted)
    if done < len(attempted):
        left = time_left(attempted, max(1, running), None, {})
        how_long = "" if left is None else f", {about(left)} left with {max(1, running)} at a time"
        say(f"{done} of {len(attempted)} trials done, {running} running{how_long}")
    return 0


def draw(wanted: Sweep, trials: Trials, path: Path) -> None:
    """Draw the sweep, if matplotlib is installed."""
    try:
        from makemoe.pictures.sweep import Drawn, draw_sweep
    except ImportError:
        say("no picture: pip install 'makemoe[plots]' draws the sweep")
        return
    short = wanted.short()
    drawn = [
        Drawn(
            one.number,
            one.loss,
            one.state == "complete",
            {short[key]: value for key, value in one.values.items()},
            shown(wanted, one.values),
        )
        for one in trials.attempted()
        if one.state in ("complete", "pruned") and one.loss is not None
    ]
    if not any(one.is_complete for one in drawn):
        return
    importances = {short[key]: share for key, share in trials.importances().items()}
    logs = {short[one.key] for one in wanted.space if one.log}
    with replacing(path) as file:
        draw_sweep(drawn, importances, logs, wanted.seeds).savefig(file, format="png")
    say(f"picture {path}, data {path.parent / RESULTS}")
