"""The parsers of all commands, and what each of their options takes. Imports torch."""

import argparse
from typing import Any, NoReturn, get_args

from jsonargparse._actions import _ActionConfigLoad
from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from makemoe.claim import OwnFolder
from makemoe.cli import compare, options, plan, runs, sweep
from makemoe.cli.classes import class_names, words_of
from makemoe.cli.configs import bundled
from makemoe.cli.help import SHOWN_HELP
from makemoe.cli.shells import Command, Option, Values
from makemoe.cli.signatures import LINKED
from makemoe.cli.training import TrainingCLI, quieten
from makemoe.data.corpus import NAMES
from makemoe.hardware import CPU, KINDS, LINKS, NETWORKS
from makemoe.search.variants import TAKEN

FILES = Values(files="*")
FOLDERS = Values(files="/")
BY_METAVAR = {"FILE": FILES, "DIR": FOLDERS}

BY_NAME = {
    "config": Values(tuple(bundled()), files="*.yaml"),
    "ckpt_path": Values(("last", "best"), files="*.ckpt", runs=True),
    "data.corpus": Values(tuple(NAMES), files="*"),
    "data.test_corpus": FILES,
    "run.root": FOLDERS,
    "device": Values(("auto", "cpu", "cuda", "mps")),
    "kind": Values((*KINDS, CPU)),
    "link": Values(tuple(LINKS)),
    "network": Values(tuple(NETWORKS)),
    "trainer.accelerator": Values(("auto", "cpu", "gpu")),
    "trainer.default_root_dir": FOLDERS,
    "trainer.strategy": Values(("auto", "ddp")),
}
"""Options whose type does not tell what they take, or tells it less well."""


class Built(Exception):
    """Ends the building of a command line once its parsers are there."""

    def __init__(self, parsers: dict[str, LightningArgumentParser]) -> None:
        self.parsers = parsers


class ParsersOnly(TrainingCLI):
    """The parsers of `fit`, `validate` and `test`; they parse nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> NoReturn:
        """Raise `Built`."""
        raise Built(self._subcommand_parsers)


def training_parsers() -> dict[str, LightningArgumentParser]:
    """The parsers of `fit`, `validate` and `test`, by command."""
    quieten()
    try:
        ParsersOnly([], OwnFolder())
    except Built as built:
        return built.parsers
    raise AssertionError("the parsers are built before anything is parsed")


def commands() -> list[Command]:
    """Every command with its options, from its parser."""
    training = training_parsers()
    fit = options_of(training["fit"])
    own, of_sweep = options_of(compare.parser()), options_of(sweep.parser())
    passed_on = without(fit, [*compare.NOT_HERE, *(option.name for option in own)])
    planning = options_of(plan.parser())
    planned = without(fit, [*plan.NOT_HERE, *(option.name for option in planning)])
    varied = without(passed_on, [f"--{name}" for name in TAKEN])
    keys = tuple(f"{one.name[2:]}=" for one in varied if one.takes and one.name[:2] == "--")
    own = [one._replace(takes=Values(keys)) if one.name == "--vary" else one for one in own]
    return [
        *(Command(name, said(parser), options_of(parser)) for name, parser in training.items()),
        *(
            Command(parser.prog.split()[1], said(parser), options_of(parser))
            for parser in (
                options.predict_parser(),
                options.serve_parser(),
                options.inspect_parser(),
                options.export_parser(),
                options.import_parser(),
                options.consolidate_parser(),
            )
        ),
        Command("compare", said(compare.parser()), [*own, *passed_on]),
        Command("plan", said(plan.parser()), [*planning, *planned]),
        Command("sweep", said(sweep.parser()), [*of_sweep, *passed_on]),
        Command("runs", said(runs.parser()), options_of(runs.parser())),
    ]


def said(parser: argparse.ArgumentParser) -> str:
    """What a command does."""
    return parser.description or ""


def without(known: list[Option], names: list[str]) -> list[Option]:
    """The options that have other names."""
    return [option for option in known if option.name not in names]


def options_of(parser: argparse.ArgumentParser) -> list[Option]:
    """The options of a parser that a user gives; `-c` and `--config` are two."""
    known = parser._option_string_actions
    return [
        Option(name, meaning(action), values_of(action, known))
        for name, action in known.items()
        if action.dest not in LINKED and not isinstance(action, _ActionConfigLoad)
    ]


def meaning(action: argparse.Action) -> str:
    """What an option means, in plain text."""
    told = SHOWN_HELP["fit"].get(action.dest) or action.help or ""
    return told % (vars(action) | {"prog": ""}) if "%" in told else told


def values_of(action: Any, known: dict[str, argparse.Action]) -> Values | None:
    """What an option takes; None: it stands alone."""
    if action.nargs == 0 or action.dest == "print_config":
        return None
    if action.dest in BY_NAME:
        return BY_NAME[action.dest]
    if action.choices is not None:
        return Values(tuple(map(str, action.choices)))
    words: list[Any] = []
    if isinstance(action, ActionTypeHint):
        hint: Any = action._typehint
        words += words_of(hint)
        words += ["true", "false"] if bool in (hint, *get_args(hint)) else []
    helper: Any = action if hasattr(action, "_help_types") else known.get(f"--{action.dest}.help")
    if helper is not None:
        words += class_names(helper)
    if words:
        return Values(tuple(dict.fromkeys(map(str, words))))
    return BY_METAVAR.get(action.metavar, Values())
