"""Checks, counts and times the variants of a comparison: `python -m makemoe.cli.examine FOLDER`.

A process of its own, so that `makemoe compare` need not import torch. It reads request.json in the
folder, and writes plan.json there. Nothing else is written, and nothing is trained but a few steps.
"""

import gc
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from lightning.pytorch import Trainer

from makemoe.claim import OwnFolder
from makemoe.cli import interrupts
from makemoe.cli.compare import config_files
from makemoe.cli.failures import tell
from makemoe.cli.measure import measure
from makemoe.cli.sizes import factory
from makemoe.cli.training import TrainingCLI, quieten
from makemoe.errors import DataError, MakeMoEError, UsageError
from makemoe.model.block import Architecture
from makemoe.search.equal import Asked, asked_of, length, length_words
from makemoe.search.folder import digest
from makemoe.search.plan import Plan, Timing, TwinOf, Variant, difference
from makemoe.search.side_by_side import say, say_in_passing
from makemoe.search.twins import Size, twin_of, twin_words, without_router
from makemoe.search.variants import folder_name
from makemoe.training.memory import keep_freed_memory
from makemoe.training.work import work_of

NOT_COMPARED = ("config", "ckpt_path", "run", "seed", "trust")
"""Settings that are of a run, or that do not matter to what it learns."""

ALIKE = 0.01
"""Variants share a twin if its size differs from theirs by less than this share."""


class Wanted(NamedTuple):
    """A variant as it is asked for.

    Attributes:
        name: its name.
        words: the options of its fit.
        varied: the options that are varied, and their values.
    """

    name: str
    words: list[str]
    varied: list[tuple[str, str]]


class Seen(NamedTuple):
    """A variant that has been looked at.

    Attributes:
        variant: what is known of it.
        model: its sizes and parts.
        wanted: how it was asked for.
        settings: its settings before the length of its run was set.
    """

    variant: Variant
    model: Architecture
    wanted: Wanted
    settings: dict[str, Any]


class CheckedCLI(TrainingCLI):
    """Builds what fit builds, with all its checks, and trains nothing."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, without trackers."""
        self._get(self.config_init, "trainer").logger = False
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Examination:
    """Examines the variants of a comparison, one after another.

    Args:
        request: what is asked for, as `makemoe.cli.compare.request` writes it.
        scratch: folder for what building a run writes.
    """

    def __init__(self, request: dict[str, Any], scratch: Path) -> None:
        self.request, self.scratch = request, scratch
        self.import_s = time.time() - request["began"]
        self.seen: list[Seen] = []
        self.first: Asked | None = None
        self.seed = 0

    def plan(self) -> Plan:
        """The plan.

        Raises:
            MakeMoEError: for a variant that fit would refuse; the message names it.
        """
        for one in self.request["variants"]:
            wanted = Wanted(one["name"], one["words"], [tuple(pair) for pair in one["varied"]])
            with self.naming(wanted.name):
                self.look_at(wanted)
        for size in self.request["twins"]:
            self.add_twins(size)
        seeds = tuple(range(self.seed, self.seed + self.request["seeds"]))
        # Not before all have been checked: it takes longer.
        variants = tuple(self.timed(seen.variant) for seen in self.seen)
        return Plan(variants, seeds, self.request["equal"])

    def called(self, name: str) -> str:
        """What messages call a variant; empty if there is only one."""
        several = len(self.request["variants"]) + len(self.request["twins"]) > 1
        return f"variant {name}" if several else ""

    @contextmanager
    def naming(self, name: str) -> Iterator[None]:
        """Name the variant in an error, if there are several."""
        try:
            yield
        except MakeMoEError as error:
            called = self.called(name)
            if not called:
                raise
            kind = UsageError if isinstance(error, UsageError) else DataError
            raise kind(f"{called}: {error}") from error

    def look_at(self, wanted: Wanted, twin: TwinOf | None = None) -> None:
        """Check and count a variant, and add it."""
        cli, asked_settings = self.build(wanted.words)
        settings = asked_settings
        tokens = step_tokens(cli)
        asked = asked_of(settings, tokens, work_of(cli.model.net))
        if self.first is None:
            self.seed = cli.settings.seed
            # Not always what it asks for, and all others train as long as it does.
            self.first = asked._replace(steps=length(asked, asked, self.request["equal"]).steps)
        train = length(asked, self.first, self.request["equal"])
        more = length_words(settings, train)
        if more:
            del cli
            cli, settings = self.build([*wanted.words, *more])
        work = work_of(cli.model.net)
        same = [s for s in self.seen if difference(settings, s.variant.settings) is None]
        if same and twin is not None:
            say(f"{wanted.name} is the same as {same[0].variant.name}, and is left out")
            return
        if same:
            raise UsageError(f"it is the same as {same[0].variant.name}: omit one")
        name = wanted.name if twin is None else self.known_name(wanted.name, settings)
        variant = Variant(
            name,
            folder_name(name),
            (*wanted.words, *more),
            settings,
            work.parameters,
            work.active,
            work.flops,
            tokens,
            train.steps,
            train.val_every,
            twin=twin,
            configs={str(path): digest(path) for path in config_files(wanted.words)},
        )
        self.seen.append(Seen(variant, cli.model.net.architecture, wanted, asked_settings))

    def known_name(self, name: str, settings: dict[str, Any]) -> str:
        """The name of a twin: the one that an earlier call gave it, when there were other twins."""
        taken = {seen.variant.name for seen in self.seen}
        for known in self.request["known"]:
            # One of another comparison is the twin of variants that are not here.
            is_ours = bool(taken & set(known["twin_of"])) and known["name"] not in taken
            if is_ours and difference(known["settings"], settings) is None:
                return str(known["name"])
        return name

    def build(self, words: Sequence[str]) -> tuple[CheckedCLI, dict[str, Any]]:
        """Build what a fit with these options builds; return it, and its settings."""
        gc.collect()  # two models may not fit
        began = time.monotonic()
        of_run = (f"--run.root={self.scratch}", "--run.name=probe")
        with OwnFolder() as folder:
            cli = CheckedCLI(["fit", *self.request["quiet"], *words, *of_run], folder)
        shutil.rmtree(self.scratch / "probe", ignore_errors=True)
        self.build_s = time.monotonic() - began
        return cli, settings_of(cli)

    def timed(self, variant: Variant) -> Variant:
        """The variant with how long a run takes: measured, unless an earlier call has done that."""
        for known in self.request["known"]:
            if known["timing"] and difference(known["settings"], variant.settings) is None:
                return replace(variant, timing=Timing(**known["timing"]))
        say_in_passing(f"measuring how long {variant.name} takes")
        try:
            with self.naming(variant.name):
                cli, _ = self.build(variant.words)
                measured = measure(cli)
        finally:
            say_in_passing("")
        if measured is None:
            return variant
        return replace(variant, timing=Timing(self.import_s + self.build_s, *measured))

    # -- twins

    def add_twins(self, size: Size) -> None:
        """Add the dense twin of every variant; variants that differ in their routers share one."""
        shared: list[tuple[Seen, list[str]]] = []
        routed = [seen for seen in self.seen if seen.variant.twin is None]
        for seen in routed:
            if not seen.model.routed_layers:
                raise UsageError(
                    f"--twin {size}: {seen.variant.name} has no router, and a dense model has no "
                    "twin"
                )
            for other, names in shared:
                if are_alike(seen, other, size):
                    names.append(seen.variant.name)
                    break
            else:
                shared.append((seen, [seen.variant.name]))
        for seen, names in shared:
            name = f"dense-{size}" + ("" if len(shared) == 1 else f" of {names[0]}")
            with self.naming(name):
                self.add_twin(seen, size, names, name)

    def add_twin(self, seen: Seen, size: Size, names: list[str], name: str) -> None:
        """Add the dense twin of a variant, which is also that of others."""
        target = size_of(seen.variant, size)
        spec = seen.variant.settings["model"]["experts"]
        twin = twin_of(seen.model, factory(spec), target)
        words = [*seen.wanted.words, *twin_words(twin, seen.model.n_layer, spec)]
        wanted = Wanted(name, words, seen.wanted.varied)
        self.look_at(wanted, TwinOf(size, tuple(names), twin.parameters / target - 1))


def size_of(variant: Variant, size: Size) -> int:
    """The active or the total number of parameters."""
    return variant.active if size == "active" else variant.parameters


def are_alike(one: Seen, other: Seen, size: Size) -> bool:
    """Whether two variants have the same dense twin: they differ only in what a twin lacks.

    The lengths of their runs may differ, at equal FLOPs: that of a twin follows from its own size.
    """
    if abs(size_of(one.variant, size) / size_of(other.variant, size) - 1) >= ALIKE:
        return False
    a, b = (
        seen.settings | {"model": without_router(seen.settings["model"])} for seen in (one, other)
    )
    return difference(a, b) is None


def step_tokens(cli: TrainingCLI) -> int:
    """Tokens per optimizer step."""
    settings = cli.settings
    batches = int(settings.trainer.accumulate_grad_batches)
    return int(settings.data.batch_size) * int(settings.model.block_size) * batches


def settings_of(cli: TrainingCLI) -> dict[str, Any]:
    """The settings of a fit, and which text it reads; not what belongs to one run."""
    settings = cli.settings.clone()
    for key in (*NOT_COMPARED, "data.tokenizer.init_args.vocabulary"):
        settings.pop(key, None)
    text = cli._subcommand_parsers["fit"].dump(settings, skip_none=False, skip_validation=True)
    plain: dict[str, Any] = yaml.safe_load(text)
    for key in NOT_COMPARED:
        plain.pop(key, None)
    ids = cli.datamodule.ids
    return plain | {
        "text": {
            "tokens": len(ids),
            "sha256": hashlib.sha256(np.ascontiguousarray(ids).data).hexdigest(),
        }
    }


def main(folder: str, kind: type[Examination] = Examination, command: str = "compare") -> int:
    """Examine what a folder asks for, and return the exit status."""
    interrupts.begin()
    interrupts.work()
    path = Path(folder)
    try:
        quieten()
        keep_freed_memory()
        request = json.loads((path / "request.json").read_text())
        plan = kind(request, path).plan()
        (path / "plan.json").write_text(json.dumps(plan.as_plain()))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interrupts.received:
            return interrupts.status()
        if isinstance(error, SystemExit):
            return tell(UsageError(f"an option prints and ends: {command} does not take it"), [])
        return tell(error, [command])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
