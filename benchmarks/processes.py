"""Calls a function in several processes that are connected, as the ranks of a run are."""

import importlib
import json
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

LIMIT_S = 400


def together(size: int, module: str, function: str, *arguments: Any) -> list[Any]:
    """What a function of a module here returns in each of `size` processes, with one thread each.

    It works in an empty folder. Arguments and results are plain values.

    Raises:
        RuntimeError: with what a process wrote, if one fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        return started(Path(folder), size, module, function, json.dumps(arguments))


def started(folder: Path, size: int, *words: str) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    place |= {"NODE_RANK": "0", "OMP_NUM_THREADS": "1", "JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
    # Fork from a server that has imported everything, because an import takes seconds.
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["benchmarks.rows"])
    processes = []
    try:
        for number in range(size):
            own = os.environ | place | {"RANK": str(number), "LOCAL_RANK": str(number)}
            processes.append(fresh.Process(target=rank, args=(folder, own, *words)))
            processes[-1].start()
        for process in processes:
            process.join(LIMIT_S)
    finally:
        for process in processes:
            process.kill()
    for number, process in enumerate(processes):
        process.join()
        if status := process.exitcode:
            written = (folder / f"{number}.txt").read_text().strip()
            lines = written.splitlines() or [f"it ended with status {status}"]
            raise RuntimeError(lines[-1])
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(size)]


def rank(
    folder: Path, variables: Mapping[str, str], module: str, function: str, arguments: str
) -> None:
    """Call the function in this process."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    torch.set_num_threads(1)
    number, status = variables["RANK"], 1
    try:
        with open(f"{number}.txt", "wb") as written:
            for stream in (1, 2):
                os.dup2(written.fileno(), stream)
        found = getattr(importlib.import_module(module), function)(*json.loads(arguments))
        Path(f"{number}.json").write_text(json.dumps(found))
        status = 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Without Python's own end: after gloo's collectives it may abort the process.
        os._exit(status)
