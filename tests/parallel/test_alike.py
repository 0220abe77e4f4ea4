"""Processes that were not started alike do not train: one line says what differs."""

from functools import partial
from pathlib import Path

import pytest
from nursery import MAKEMOE, Forked
from ports import free_port
from processes import ENVIRONMENT
from soak.kinds import DDP, SMALL

MACHINES = ("--trainer.devices=1", "--trainer.num_nodes=2")
OTHER = "from makemoe.cli import together; together.__version__ = '0.0'"
TEXTS = ("to be or not to be", "not to be or to be")


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (OTHER, ["--data.corpus=0.txt"], "makemoe is 0.0 here and "),
        ("pass", ["--data.corpus=0.txt", "--seed=5"], "--seed is 5 here and 1337 in the first"),
        ("pass", ["--data.corpus=1.txt"], "the text is "),
    ],
    ids=["version", "option", "text"],
)
def test_a_process_with_another_makemoe_option_or_text_ends_all(
    tmp_path: Path, change: str, options: list[str], words: str
) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text * 200)
    starts = [("pass", ["--data.corpus=0.txt"]), (change, options)]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    files, processes = [tmp_path / f"{machine}.err" for machine in range(2)], []
    for machine, (change, options) in enumerate(starts):
        command = (MAKEMOE, "fit", *SMALL, *DDP, *MACHINES, "--trainer.max_steps=2", *options)
        place = ENVIRONMENT | address | {"NODE_RANK": str(machine)}
        with files[machine].open("w") as told:
            process = Forked(
                command, tmp_path, place, stderr=told, preexec_fn=partial(exec, change)
            )
        processes.append(process)
    statuses = [process.wait(timeout=100) for process in processes]
    said = [file.read_text() for file in files]
    assert statuses == [2, 2], said
    for machine in said:
        (told,) = [line for line in machine.splitlines() if "makemoe: error" in line]
        assert words in told
        assert told.endswith("in the first process: start all processes of a run alike")
    assert not (tmp_path / "checkpoints").exists()
