"""Plays srun on one machine: starts tasks with SLURM's variables, passes signals on."""

import os
import signal
import subprocess
import sys
from types import FrameType

PASSED_ON = "--kill-on-bad-exit=1"


def main() -> int:
    """Run the tasks; the highest of their exit statuses, as srun has it."""
    command = [word for word in sys.argv[1:] if word != PASSED_ON]
    nodes, each = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = []
    for task in range(nodes * each):
        own = {
            "SLURM_NTASKS": str(nodes * each),
            "SLURM_PROCID": str(task),
            "SLURM_NODEID": str(task // each),
            "SLURM_LOCALID": str(task % each),
        }
        tasks.append(subprocess.Popen(command, env=os.environ | own))

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in tasks:
            process.send_signal(number)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, pass_on)
    statuses = [process.wait() for process in tasks]
    return max(128 - status if status < 0 else status for status in statuses)


if __name__ == "__main__":
    sys.exit(main())
