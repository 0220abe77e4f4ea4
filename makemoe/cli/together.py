"""What the processes of a run need to agree on before they train."""

import os
import shlex
import socket
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer

from makemoe import __version__, process
from makemoe.claim import OwnFolder
from makemoe.cli import others
from makemoe.data.datamodule import TextDataModule
from makemoe.errors import UsageError
from makemoe.parallel.launcher import Launcher
from makemoe.run import run_of

OF_THE_MACHINE = (
    *("config", "ckpt_path", "trust", "data.corpus", "data.test_corpus", "data.num_workers"),
    *("run.root", "trainer.default_root_dir"),
)
"""Settings that may differ between the machines of a run."""

LONGEST = 200


def learn_address() -> None:
    """Put the first process's address where torch.distributed looks for it, which srun does not."""
    if process.is_slurm():
        try:
            slurm = SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise UsageError(f"srun: {' '.join(str(error).split())}") from error
        os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}


def how_to_resume(folder: OwnFolder) -> str:
    """The end of a message about a run that another process has ended."""
    last = None if folder.path is None else folder.path / "last.ckpt"
    if last is None or not last.exists():
        return ""
    return f"; to resume: --ckpt_path {shlex.quote(str(last))}"


def own_run(folder: OwnFolder, arguments: Sequence[str], root: str) -> str | None:
    """Find the run that this job began, if torchrun or SLURM has started the job again.

    Args:
        folder: gets the job's name and, if there is a run, its folder.
        arguments: of the command, which distinguish the runs of a job.
        root: folder of all runs.

    Returns:
        its last checkpoint; None if there is none, so that the run begins anew in its folder.
    """
    if not (job := process.job()):
        return None
    folder.job = f"{job}: {shlex.join(arguments)}"

    def find() -> tuple[str, bool] | None:
        found = run_of(folder.job, root) if others.is_restarted() else None
        return None if found is None else (str(found), (found / "last.ckpt").exists())

    if not (found := others.of_first("own run", find)):
        return None
    folder.again = Path(found[0])
    return f"{found[0]}/last.ckpt" if found[1] else None


def check_alike(settings: Namespace, data: TextDataModule | None, step: int | None) -> None:
    """Refuse to train if this process has other settings, or another makemoe, than the first one.

    Args:
        settings: of this process.
        data: its text; None: no text needs to be the same.
        step: of its checkpoint.

    Raises:
        UsageError: naming what differs.
    """
    if others.current is None or not others.is_started_together():
        return
    said = {"makemoe": __version__, "torch": torch.__version__}
    for key, value in settings.as_flat().__dict__.items():
        if not key.startswith(OF_THE_MACHINE):
            text = str(value)
            said[f"--{key}"] = text if len(text) < LONGEST else sha256(text.encode()).hexdigest()
    text = "" if data is None else f"{data.fingerprint} ({data.fingerprint.digest[:8]})"
    others.current.agree(said | {"the text": text, "the step of the checkpoint": str(step)})


def renew_store() -> None:
    """Connect the processes of a restarted run through a store of their own.

    In that of torchrun, gloo would find the addresses of the processes that have ended.
    """
    of_all = others.current
    if process.has_store() and of_all is not None:
        port = of_all.of_first("port", lambda: free_port() if of_all.started() > 1 else None)
        if port is not None:
            os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def free_port() -> int:
    """A port that nobody uses."""
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def watch_others(trainer: Trainer) -> None:
    """Notice from now on if another process of the trainer ends."""
    renew_store()
    launcher = Launcher.in_place_of(trainer)
    if others.current is not None and trainer.world_size > 1:
        if launcher is not None:
            others.current.children = lambda: launcher.procs
        others.current.start()
