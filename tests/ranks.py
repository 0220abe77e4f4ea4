"""Processes that run commands together, one command after another: they start only once."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from processes import ENVIRONMENT


def together(folder: Path, size: int, commands: Sequence[Sequence[str]]) -> None:
    """Run `makemoe` with each of some lists of arguments in `folder`, in `size` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    here |= {"WORLD_SIZE": str(size), "JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
    started = []
    for rank in range(size):
        with (folder / f"rank{rank}.txt").open("w") as told:
            started.append(
                subprocess.Popen(
                    [sys.executable, __file__, json.dumps([list(one) for one in commands])],
                    cwd=folder,
                    env=ENVIRONMENT | here | {"LOCAL_RANK": str(rank)},
                    stdout=told,
                    stderr=told,
                )
            )
    try:
        statuses = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    told = "".join((folder / f"rank{rank}.txt").read_text() for rank in range(size))
    assert statuses == [0] * size, told


def main() -> int:
    """Run the commands in this process; the status of the first that fails."""
    from makemoe.cli import main as makemoe
    from makemoe.run import FOLDER_VARIABLE

    for command in json.loads(sys.argv[1]):
        os.environ.pop(FOLDER_VARIABLE, None)
        if status := makemoe(command):
            return status
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the clean-up of Python: after gloo's collectives, it may abort the process.
    os._exit(status)
