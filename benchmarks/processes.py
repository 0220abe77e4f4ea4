"""Calls a function in several processes that are connected, as the ranks of a run are."""

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT_S = 400
CODE = "from benchmarks.processes import rank; rank()"


def together(size: int, module: str, function: str, *arguments: Any) -> list[Any]:
    """What a function of a module here returns in each of `size` processes, with one thread each.

    It works in an empty folder. Arguments and results are plain values.

    Raises:
        RuntimeError: with what a process wrote, if one fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        return started(Path(folder), size, [module, function, json.dumps(arguments)])


def started(folder: Path, size: int, words: Sequence[str]) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    place |= {"NODE_RANK": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    place |= {"JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
    files, processes = [folder / f"{number}.txt" for number in range(size)], []
    try:
        for number, file in enumerate(files):
            own = place | {"RANK": str(number), "LOCAL_RANK": str(number)}
            with file.open("w") as written:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", CODE, *words],
                        cwd=folder,
                        env=os.environ | own,
                        stdout=written,
                        stderr=written,
                    )
                )
        statuses = [process.wait(LIMIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for file, status in zip(files, statuses, strict=True):
        if status:
            lines = file.read_text().strip().splitlines() or [f"it ended with status {status}"]
            raise RuntimeError(lines[-1])
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(size)]


def rank() -> None:
    """Call the function in this process."""
    module, function, arguments = sys.argv[1:]
    status = 1
    try:
        found = getattr(importlib.import_module(module), function)(*json.loads(arguments))
        Path(f"{os.environ['RANK']}.json").write_text(json.dumps(found))
        status = 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Without Python's own end: after gloo's collectives it may abort the process.
        os._exit(status)
