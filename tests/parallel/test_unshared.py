"""Two machines whose folders are their own: what works, and what is refused. They share a host."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ports import free_port
from processes import ENVIRONMENT
from soak.kinds import DDP, FSDP, PIECES, SMALL

TEXT = "to be or not to be, that is the question " * 50
MACHINES = ("--trainer.devices=1", "--trainer.num_nodes=2")
ALIKE = (*SMALL, *MACHINES, "--trainer.val_check_interval=4", "--run.name=run")
ENDLESS = "--trainer.max_steps=1000000"


@pytest.fixture
def machines(tmp_path: Path) -> list[Path]:
    """The working folders of two machines, with the same text at different places."""
    folders = [tmp_path / "0", tmp_path / "1"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / f"text{number}.txt").write_text(TEXT)
    return folders


def fit(
    folders: Sequence[Path], *options: str, own: Sequence[Sequence[str]] = ((), ())
) -> list[str]:
    """Start a fit on each machine, with options of its own; the status and errors of each."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "makemoe", "fit", *options, *own[machine]],
            cwd=folder,
            env=ENVIRONMENT | address | {"NODE_RANK": str(machine)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for machine, folder in enumerate(folders)
    ]
    told = []
    for process in processes:
        err = process.communicate(timeout=100)[1]
        errors = [line for line in err.splitlines() if "error" in line.lower()]
        told.append(" | ".join([str(process.returncode), *errors]))
    return told


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def test_without_a_shared_folder_a_run_trains_and_resumes_once_its_file_is_copied(
    machines: list[Path],
) -> None:
    # Where the text is, where runs are, and who reads: these need not be alike.
    texts = [[f"--data.corpus=text{n}.txt", f"--data.num_workers={n}"] for n in range(2)]
    own = [[*text, f"--run.root={root}"] for text, root in zip(texts, "ab", strict=True)]
    assert fit(machines, *ALIKE, *DDP, "--trainer.max_steps=4", own=own) == ["0", "0"]
    last = Path("a", "run", "last.ckpt")
    assert step_of(machines[0] / last) == 4
    assert not list(machines[1].rglob("*.ckpt"))
    again = (*MACHINES, *DDP, "--trainer.max_steps=8", f"--ckpt_path={last}")
    first, second = fit(machines, *again, own=texts)
    assert first.startswith("1 | makemoe: error in process 0 of machine 1 on ")
    assert second.startswith("1 | makemoe: error: ")
    assert all(f": no checkpoint {last}: " in line for line in (first, second))
    (machines[1] / last).parent.mkdir(parents=True)
    shutil.copy(machines[0] / last, machines[1] / last)
    assert fit(machines, *again, own=texts) == ["0", "0"]
    assert step_of(machines[0] / last) == 8
    assert step_of(machines[1] / last) == 4  # only the first process writes


def test_pieces_in_a_folder_that_not_all_see_are_refused_before_training(
    machines: list[Path],
) -> None:
    corpora = [[f"--data.corpus=text{n}.txt"] for n in range(2)]
    for line in fit(machines, *ALIKE, *FSDP, *PIECES, ENDLESS, own=corpora):
        assert line.startswith("1 | makemoe: error")
        assert "not all machines see the folder" in line
        assert "gather true" in line
        assert line.count("makemoe: error") == 1
    assert not list(machines[0].rglob("*.ckpt*"))


def test_a_text_that_one_machine_does_not_have_ends_all(machines: list[Path]) -> None:
    first, second = fit(machines, *ALIKE, *DDP, ENDLESS, "--data.corpus=text0.txt")
    words = "--data.corpus 'text0.txt': no such file"
    assert first.startswith("1 | makemoe: error in process 0 of machine 1 on ")
    assert second.startswith(f"1 | makemoe: error: {words}")
    assert words in first


def test_a_machine_that_never_comes_is_waited_for_as_long_as_the_time_out_says(
    machines: list[Path],
) -> None:
    timeout = (
        "--trainer.strategy.class_path=lightning.pytorch.strategies.DDPStrategy",
        "--trainer.strategy.init_args.timeout=0:00:03",
    )
    (told,) = fit(machines[:1], *ALIKE, *timeout, ENDLESS, "--data.corpus=text0.txt")
    assert told.startswith("1 | makemoe: error: another process")
    assert "1/2 clients joined" in told
    assert told.count("makemoe: error") == 1
