from collections.abc import Callable

import pytest
from commandline import Ended

from makemoe import __version__

Call = Callable[..., Ended]
UNITS = {
    "fit": ["tokens", "windows", "steps", "(L2 norm"],
    "validate": ["nats per token", "bits per character", "windows"],
    "test": ["nats per token", "bits per character", "windows"],
    "predict": ["tokens", "probability"],
    "inspect": ["nats per token", "bits per character", "1 % of the even load", "K + (E - K)/4"],
}


@pytest.mark.parametrize("command", UNITS)
def test_help_fits_a_screen_and_names_units(makemoe: Call, command: str) -> None:
    ended = makemoe(command, "--help")
    assert ended.status == 0
    assert ended.err == ""
    lines = ended.out.splitlines()
    assert f"makemoe {command}" in lines[0]
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 100
    assert "--ckpt_path" in ended.out
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
