"""Jobs of torchrun and SLURM that are started again go on with their own run, and no other does."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import TINY, Ended
from lightning.pytorch import Trainer
from processes import assert_same_run

from makemoe.callbacks import LastCheckpoint
from makemoe.errors import CheckpointError

Call = Callable[..., Ended]
Job = dict[str, str]

FIT = ("fit", *TINY, "--run.save_every_n_steps=5")
STOPPED_AT = 12
# Where there is one process, it looks for no other, whose errors would end this one.
PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "1"}
TORCHRUN: Job = PLACE | {
    **{"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"},
    **{"LOCAL_WORLD_SIZE": "1"},
    **{"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"},
}
NAMED = TORCHRUN | {"TORCHELASTIC_RUN_ID": "my-job"}
SLURM: Job = PLACE | {
    **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "makemoe", "SLURM_NODELIST": "localhost"},
    **{"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
}
AGAIN = {
    "torchrun": (TORCHRUN, TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"}),
    "torchrun with a name": (NAMED, NAMED),
    "SLURM": (SLURM, SLURM | {"SLURM_RESTART_COUNT": "1"}),
}


@pytest.fixture
def start(makemoe: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls makemoe as a launcher does, which sets the variables of a job."""
    mine = [name for name in os.environ if name.startswith(("SLURM", "TORCHELASTIC"))]

    def start(job: Job, *arguments: str) -> Ended:
        with monkeypatch.context() as variables:
            for name in mine:
                variables.delenv(name)
            for name, value in job.items():
                variables.setenv(name, value)
            return makemoe(*arguments)

    return start


@pytest.fixture
def once_stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Does something once, after a step of the next run."""
    attend = LastCheckpoint.attend

    def once_stopped(work: Callable[[], None]) -> None:
        def attend_once(self: LastCheckpoint, trainer: Trainer, wait: bool = False) -> None:
            attend(self, trainer, wait)
            if trainer.global_step == STOPPED_AT:
                monkeypatch.setattr(LastCheckpoint, "attend", attend)
                work()

        monkeypatch.setattr(LastCheckpoint, "attend", attend_once)

    return once_stopped


def fail() -> None:
    raise CheckpointError("the machine is gone")


def runs() -> list[str]:
    return sorted(path.name for path in Path("checkpoints").iterdir())


@pytest.mark.parametrize("launcher", AGAIN)
def test_a_job_that_is_started_again_goes_on_in_its_folder(
    makemoe: Call, start: Call, once_stopped: Callable[..., None], launcher: str
) -> None:
    first, again = AGAIN[launcher]
    assert makemoe(*FIT, "--run.name=whole").status == 0
    once_stopped(fail)
    assert start(first, *FIT).status == 1
    ended = start(again, *FIT)
    assert ended.status == 0, ended.err
    assert "makemoe: using checkpoints/run/last.ckpt (step 10)\n" in ended.err
    assert runs() == ["run", "whole"]
    assert_same_run(*[Path("checkpoints", run, "last.ckpt") for run in runs()])


def test_a_job_that_had_saved_nothing_begins_anew_in_its_folder(
    start: Call, once_stopped: Callable[..., None]
) -> None:
    first, again = AGAIN["torchrun"]
    late = (*FIT, "--run.save_every_n_steps=20", "--trainer.val_check_interval=20")
    once_stopped(fail)
    assert start(first, *late).status == 1
    assert not Path("checkpoints/run/last.ckpt").exists()
    assert start(again, *late).status == 0
    assert runs() == ["run"]


@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        (TORCHRUN, TORCHRUN, []),
        (SLURM, SLURM, []),
        (NAMED, NAMED | {"TORCHELASTIC_RUN_ID": "new-job"}, []),
        (NAMED, NAMED, ["--seed=5"]),
        (SLURM, SLURM | {"SLURM_RESTART_COUNT": "1", "SLURM_JOB_ID": "4712"}, []),
    ],
    ids=["torchrun", "SLURM", "another name", "other arguments", "another job"],
)
def test_another_job_begins_a_run_of_its_own(
    start: Call, first: Job, second: Job, options: list[str]
) -> None:
    short = (*FIT, "--trainer.max_steps=2")
    assert start(first, *short).status == 0
    ended = start(second, *short, *options)
    assert ended.status == 0, ended.err
    assert runs() == ["run", "run-2"]
    assert "makemoe: using" not in ended.err


def test_at_slurm_s_signal_a_run_saves_and_stops_with_its_status(
    start: Call, once_stopped: Callable[..., None]
) -> None:
    once_stopped(lambda: signal.raise_signal(signal.SIGUSR1))
    ended = start(SLURM, *FIT)
    assert ended.status == 138
    step = torch.load("checkpoints/run/last.ckpt", weights_only=True)["global_step"]
    assert STOPPED_AT < step < 20
    assert f"SIGUSR1: stopped at step {step}; to resume: " in ended.err
