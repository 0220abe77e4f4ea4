"""docs/cluster.sbatch, with a srun that starts real processes with SLURM's variables."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from machines import wait_for
from processes import ENVIRONMENT, assert_same_run

SCRIPT = Path(__file__).parents[2] / "docs" / "cluster.sbatch"
SMALL = (
    "--model.n_layer=1",
    "--model.n_embd=16",
    "--model.n_head=2",
    "--model.block_size=16",
    "--model.num_experts=4",
    "--model.dropout=0.1",
    "--data.batch_size=7",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=5",
    "--trainer.val_check_interval=1000",
    "--run.pictures=false",
    "--run.sample_tokens=0",
    "--run.save_every_n_steps=20",
)
STEPS = 300


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job with two machines and a task on each; scontrol notes its calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    srun = Path(__file__).with_name("fake_srun.py")
    for name, text in (
        ("srun", f'exec {sys.executable} {srun} "$@"'),
        ("scontrol", f'echo "$@" >> {tmp_path}/scontrol.txt'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    return ENVIRONMENT | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "MAKEMOE": f"{sys.executable} -m makemoe",
        "SLURM_JOB_ID": f"4{os.getpid() % 10000:04}",
        "SLURM_JOB_NAME": "makemoe",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "localhost",
    }


def submit(folder: Path, variables: Mapping[str, str], *options: str) -> "subprocess.Popen[bytes]":
    """Run the script as SLURM would."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            ["bash", str(SCRIPT), *SMALL, *options],
            cwd=folder,
            env=dict(variables),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def tasks(job: "subprocess.Popen[bytes]") -> list[int]:
    """The processes of srun, which SLURM signals."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes(), (entry / "stat").read_text()
            except OSError:
                continue
            session = words[1].rpartition(")")[2].split()[3]
            if session == str(job.pid) and b"fake_srun" in words[0] and b"python" in words[0]:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_job_whose_time_is_over_saves_and_goes_on_as_the_same_run(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    steps = f"--trainer.max_steps={STEPS}"
    whole = submit(tmp_path, cluster | {"SLURM_JOB_ID": "41"}, steps, "--run.name=whole")
    assert whole.wait(timeout=200) == 0, (tmp_path / "log.txt").read_text()
    job = submit(tmp_path, cluster, steps)
    last = tmp_path / "checkpoints" / "ddp" / "last.ckpt"
    wait_for(last.exists)
    for pid in tasks(job):
        os.kill(pid, signal.SIGUSR1)
    assert job.wait(timeout=60) == 128 + signal.SIGUSR1
    assert (tmp_path / "scontrol.txt").read_text() == f"requeue {cluster['SLURM_JOB_ID']}\n"
    log = (tmp_path / "log.txt").read_text()
    assert "SIGUSR1: stopped at step" in log
    assert "Traceback" not in log
    assert torch.load(last, weights_only=True)["global_step"] < STEPS
    again = submit(tmp_path, cluster | {"SLURM_RESTART_COUNT": "1"}, steps)
    assert again.wait(timeout=200) == 0, (tmp_path / "log.txt").read_text()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["ddp", "whole"]
    assert_same_run(tmp_path / "checkpoints" / "whole" / "last.ckpt", last)


@pytest.mark.parametrize(
    ("status", "strategy", "is_queued"), [(0, "", False), (1, "", False), (138, "fsdp", True)]
)
def test_the_script_passes_options_on_and_queues_what_ran_out_of_time(
    tmp_path: Path, cluster: dict[str, str], status: int, strategy: str, is_queued: bool
) -> None:
    srun = tmp_path / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > words.txt\nexit {status}\n')
    variables = cluster | {"SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "8", "MAKEMOE": "makemoe"}
    variables |= {"STRATEGY": strategy} if strategy else {}
    job = submit(tmp_path, variables, "--data.corpus=my text.txt")
    assert job.wait(timeout=60) == status
    words = (tmp_path / "words.txt").read_text().splitlines()
    assert words[1:] == [
        *("makemoe", "fit", *SMALL, "--data.corpus=my text.txt", "--config", strategy or "ddp"),
        *("--trainer.num_nodes=3", "--trainer.devices=8"),
    ]
    queued = tmp_path / "scontrol.txt"
    assert queued.exists() == is_queued
    assert not is_queued or queued.read_text() == f"requeue {cluster['SLURM_JOB_ID']}\n"


def test_an_error_is_told_once_per_machine(tmp_path: Path, cluster: dict[str, str]) -> None:
    job = submit(tmp_path, cluster | {"SLURM_JOB_ID": "42"}, "--data.corpus=missing.txt")
    try:
        assert job.wait(timeout=200) == 1
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 2, lines
    for line in lines:
        assert line.startswith("makemoe: error")
        assert "--data.corpus 'missing.txt': no such file" in line
