"""Which process this is, from the variables that torchrun, srun and Lightning document."""

import os

import pytest

from makemoe import process

TORCHRUN = {
    **{"RANK": "11", "LOCAL_RANK": "3", "GROUP_RANK": "1"},
    **{"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"},
    **{"TORCHELASTIC_RUN_ID": "my-job", "TORCHELASTIC_RESTART_COUNT": "2"},
}
SLURM = {
    **{"SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_NODEID": "1"},
    **{"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8"},
    **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "makemoe", "SLURM_RESTART_COUNT": "2"},
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, on a machine of this name."""
    ours = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    for name in list(os.environ):
        if name in ours or name.startswith(("SLURM", "TORCHELASTIC")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(process, "host", lambda: "node2")


def put(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", [TORCHRUN, SLURM], ids=["torchrun", "srun"])
def test_launchers_say_which_process_this_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    put(monkeypatch, variables)
    assert (process.rank(), process.local_rank(), process.machine()) == (11, 3, 1)
    assert (process.started(), process.started_here(), process.attempt()) == (16, 8, 2)
    assert (process.is_first(), process.is_first_here()) == (False, False)
    assert process.is_started_by_another()
    assert process.name() == "process 11 on node2"
    assert process.name(0) == "process 8 on node2"


def test_without_a_launcher_this_is_the_first_process() -> None:
    assert (process.rank(), process.local_rank(), process.machine()) == (0, 0, 0)
    assert (process.started(), process.started_here(), process.attempt()) == (None, None, 0)
    assert process.is_first()
    assert process.is_first_here()
    assert not process.is_started_by_another()
    assert process.job() == ""


def test_a_machine_without_a_launcher_knows_only_its_own_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(monkeypatch, {"NODE_RANK": "1"})
    assert (process.is_first(), process.is_first_here()) == (False, True)
    assert process.name() == "process 0 of machine 1 on node2"


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_a_shell_in_a_slurm_job_is_no_process_of_srun(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    put(monkeypatch, SLURM | {"SLURM_JOB_NAME": name})
    assert (process.rank(), process.started(), process.job()) == (0, None, "")


def test_all_starts_of_a_job_have_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, SLURM)
    assert process.job() == "slurm 4711"
    put(monkeypatch, TORCHRUN)
    assert process.job() == "torchrun my-job"
    assert process.is_named()
    # Without --rdzv_id, torchrun writes `none`: what stays the same is torchrun itself.
    put(monkeypatch, {"TORCHELASTIC_RUN_ID": "none"})
    assert not process.is_named()
    assert process.job() == f"torchrun node2 {os.getppid()}"
