"""Which process of a run this is, as the program that started it says in the environment.

torchrun, srun and Lightning's launcher start the processes of a run, on one machine or several.
"""

import os

ELASTIC = "TORCHELASTIC_RUN_ID"
"""Environment variable that is set in the processes of torchrun."""

SHELLS = "bash", "interactive"
"""Names of SLURM jobs that are a shell: in them, srun does not start the processes."""


stops = False
"""Whether a signal has asked this process to save and end, which a second one would cut short."""


def is_elastic() -> bool:
    """Whether torchrun has started this process."""
    return ELASTIC in os.environ


def has_store() -> bool:
    """Whether torchrun connects its processes through a store of its own, which outlives them."""
    return is_elastic() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_slurm() -> bool:
    """Whether srun has started this process."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in SHELLS


def is_started_by_another() -> bool:
    """Whether a launcher or another process of the same run has started this process."""
    return is_elastic() or is_slurm() or local_rank() > 0


def rank() -> int:
    """Index of this process among all; on its machine, if no more is known."""
    return _number("RANK", "SLURM_PROCID" if is_slurm() else "LOCAL_RANK")


def local_rank() -> int:
    """Index of this process on its machine."""
    return _number("LOCAL_RANK", *(["SLURM_LOCALID"] if is_slurm() else []))


def machine() -> int:
    """Index of this process's machine."""
    return _number("GROUP_RANK", "NODE_RANK", *(["SLURM_NODEID"] if is_slurm() else []))


def is_first() -> bool:
    """Whether this process is the first one of its run, on all machines."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def is_first_here() -> bool:
    """Whether this process is the first one of its run on this machine."""
    return local_rank() == 0


def name(local: int | None = None) -> str:
    """How messages name this process, or another one on the same machine."""
    own = local_rank()
    local = own if local is None else local
    which = f"process {rank() - own + local}"
    if machine() and not any(variable in os.environ for variable in ("RANK", "SLURM_PROCID")):
        which = f"process {local} of machine {machine()}"
    return f"{which} on {host()}"


def host() -> str:
    """The name of this machine."""
    import socket  # at the top, it would delay the handling of Ctrl-C

    return socket.gethostname()


def started() -> int | None:
    """How many processes a launcher has started on all machines; None: there is no launcher."""
    return _number(*_counts("WORLD_SIZE", "SLURM_NTASKS")) or None


def started_here() -> int | None:
    """How many processes a launcher has started on this machine; None if that is not known."""
    return _number(*_counts("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")) or None


def attempt() -> int:
    """How often the launcher has started the processes of this run before, here.

    torchrun counts only starts after a failure of its own processes, so machines may differ.
    """
    return _number("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def is_named() -> bool:
    """Whether torchrun was given a name for the job (--rdzv_id)."""
    return os.environ.get(ELASTIC, "") not in ("", "none")


def job() -> str:
    """What all attempts of a run have in common; empty if a run is only attempted once."""
    if is_elastic():
        # Without --rdzv_id, all are `none`: then it is torchrun's own process.
        return f"torchrun {os.environ[ELASTIC] if is_named() else f'{host()} {os.getppid()}'}"
    return f"slurm {os.environ['SLURM_JOB_ID']}" if is_slurm() and _has("SLURM_JOB_ID") else ""


def _counts(elastic: str, slurm: str) -> list[str]:
    """The variable of the launcher, if there is one."""
    return [elastic] if is_elastic() else [slurm] if is_slurm() else []


def _has(variable: str) -> bool:
    return bool(os.environ.get(variable))


def _number(*variables: str) -> int:
    """The first of some variables that is a number; 0: none is."""
    for variable in variables:
        text = os.environ.get(variable, "")
        if text.isascii() and text.isdigit():
            return int(text)
    return 0
