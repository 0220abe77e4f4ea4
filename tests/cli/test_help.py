import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import get_args

import pytest
from commandline import Ended

from makemoe import __version__
from makemoe.cli.help import SHOWN_HELP
from makemoe.cli.options import FORMATS, LOGS, UNKNOWN
from makemoe.cli.parsers import training_parsers
from makemoe.cli.signatures import options, short_help
from makemoe.data.unknown import Unknown
from makemoe.exchange.export import FORMATS as EXPORTED
from makemoe.exchange.export import FormatName
from makemoe.serve.answers import Log

Call = Callable[..., Ended]
UNITS = {
    "fit": ["tokens", "windows", "steps", "(L2 norm"],
    "validate": ["nats per token", "bits per character", "windows"],
    "test": ["nats per token", "bits per character", "windows"],
    "predict": ["tokens", "probability"],
    "serve": ["seconds", "tokens", "characters"],
    "inspect": ["nats per token", "bits per character", "1 % of the mean load", "K + (E - K)/4"],
    "export": ["safetensors", "must not exist"],
    "import": ["tokens", "safetensors"],
    "plan": ["bytes sent", "seconds per step"],
}
NEEDED = {"import": "--from", "plan": "--devices"}
"""The option that says what it works on; of the others, it is --ckpt_path."""


@pytest.mark.parametrize("command", UNITS)
def test_help_fits_a_screen_and_names_units(makemoe: Call, command: str) -> None:
    ended = makemoe(command, "--help")
    assert ended.status == 0
    assert ended.err == ""
    lines = ended.out.splitlines()
    assert f"makemoe {command}" in lines[0]
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 100
    assert NEEDED.get(command, "--ckpt_path") in ended.out
    for unit in UNITS[command]:
        assert unit in " ".join(ended.out.split())


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_help_all_leaves_nothing_out(makemoe: Call, command: str) -> None:
    short, long = makemoe(command, "--help"), makemoe(command, "--help_all")
    assert long.status == 0
    assert len(long.out.splitlines()) > 2 * len(short.out.splitlines())
    assert "--trainer.detect_anomaly" in long.out
    assert "--trainer.detect_anomaly" not in short.out
    assert "--help_all" in short.out


def test_the_first_help_names_every_command(makemoe: Call) -> None:
    ended = makemoe("--help")
    assert ended.status == 0
    for command in UNITS:
        assert f"\n  {command} " in ended.out
    assert len(ended.out.splitlines()) <= 24
    assert makemoe() == (2, ended.out, "")


def test_version(makemoe: Call) -> None:
    assert makemoe("--version") == (0, f"makemoe {__version__}\n", "")


@pytest.mark.parametrize("command", SHOWN_HELP)
def test_the_short_help_tells_what_the_parser_knows(command: str) -> None:
    """It is read from source files, which the parser imports."""
    parser = training_parsers()[command]
    actions = {o[2:]: a for a in parser._actions for o in a.option_strings if o[:2] == "--"}
    told = options()
    for beginning, text in SHOWN_HELP[command].items():
        names = [name for name in told if name.startswith(beginning)]
        known = [n for n in actions if n.startswith(beginning) and not n.endswith((".help", "+"))]
        assert names == known
        for name in names:
            default = actions[name].default
            if isinstance(default, dict):
                default = default["class_path"].rpartition(".")[2]
            if isinstance(default, bool):
                default = str(default).lower()
            nothing = default in (None, argparse.SUPPRESS, [])
            assert told[name].default == ("" if nothing else str(default)), name
            assert text or told[name].meaning == " ".join(actions[name].help.split())
    assert parser.format_help() == short_help(command)


IMPORTS_NOTHING_HEAVY = """
import atexit, os, sys
from makemoe.cli import main

def check():
    heavy = {'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)
    if heavy:
        print(heavy, file=sys.stderr, flush=True)
        os._exit(99)

atexit.register(check)
sys.exit(main(sys.argv[1:]))
"""


def run_light(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run makemoe; exit status 99 if it imported torch, numpy or Lightning."""
    command = [sys.executable, "-c", IMPORTS_NOTHING_HEAVY, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *[
            ("fit", "--model.n_layer 6"),
            ("predict", "--sample_top_k"),
            ("serve", "--allow_origin"),
            ("inspect", "--data.corpus"),
        ],
        *[("export", "--format"), ("import", "--block_size"), ("plan", "--per_machine")],
    ],
)
def test_help_does_not_import_torch(command: str, option: str) -> None:
    given = {"fit": ["--seed=2"], "predict": ["--seed=2"], "inspect": ["--json"]}
    done = run_light(command, *given.get(command, []), "--help")
    assert done.returncode == 0, done.stderr
    assert option in done.stdout


@pytest.mark.parametrize("command", ["predict", "serve", "inspect", "export", "import"])
@pytest.mark.parametrize("option", ["--ckpt_pth=last", "--data.unknown=never", "--json=1"])
def test_a_usage_error_does_not_import_torch(command: str, option: str) -> None:
    done = run_light(command, option)
    assert done.returncode == 2, done.stderr
    assert option[:6] in done.stderr


def test_the_options_know_every_way_to_treat_unknown_characters() -> None:
    assert get_args(Unknown) == UNKNOWN


def test_the_options_know_every_format() -> None:
    assert get_args(FormatName) == FORMATS == tuple(EXPORTED)


def test_the_options_know_every_kind_of_log() -> None:
    assert get_args(Log) == LOGS
