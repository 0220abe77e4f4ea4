"""Memory of a model in parts, and how long a save stops training, in real processes."""

import multiprocessing
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch.optim import AdamW

from benchmarks.measure import Bench, resident_mb
from benchmarks.report import Goal, Result
from makemoe.checkpoint.beside import Saving
from makemoe.checkpoint.format import Checkpoint, stamp
from makemoe.checkpoint.lightning_io import SafeCheckpointIO
from makemoe.model.transformer import MoETransformer
from makemoe.parallel.layout import Layout
from makemoe.parallel.saving import PiecesIO
from makemoe.parallel.sharding import shard
from makemoe.training.memory import keep_freed_memory, return_freed_memory

V, T, D, EXPERTS, STEPS, SAVES = 64, 16, 192, 4, 3, 4


class Job(NamedTuple):
    """What each process does.

    Attributes:
        processes: number of processes that share the model.
        layers: number of blocks, one of which is gathered at a time.
        folder: for checkpoints; None: only measure memory.
    """

    processes: int
    layers: int
    folder: str | None = None


def memory_per_rank(bench: Bench) -> list[Result]:
    """Peak memory of a step with next to no tokens: FSDP2 on 2 and 4 processes against one."""
    layers = bench.choose(24, 1)
    bench.say("memory of the states: one process")
    alone = together(Job(1, layers))[0]["peak_mb"]
    results = []
    for processes in bench.choose((2, 4), (2,)):
        bench.say(f"memory of the states: {processes} processes")
        found = together(Job(processes, layers))
        peaks = [of_rank["peak_mb"] for of_rank in found]
        if alone is None or None in peaks:
            return [Result("memory per rank", note="not measured (no /proc on this system)")]
        results.append(
            Result(
                f"peak memory per rank, FSDP2 with {processes} ranks, model states",
                ours=max(peaks),
                against="one process",
                theirs=alone,
                unit="MB",
                longer=True,
                goal=Goal("<=", round(1.15 / processes, 4)),
                note=f"{found[0]['parameters'] / 1e6:.0f} M weights, gradients, two moments each; "
                f"while the model is built, {max(of['built_mb'] for of in found):.0f} MB",
            )
        )
    return results


def saving_beside(bench: Bench) -> list[Result]:
    """How long a save stops training if the file is written beside it, against at once."""
    layers = bench.choose(12, 1)
    results = []
    for processes, what in ((1, "one file"), (2, "2 pieces of 2 ranks")):
        bench.say(f"saving beside training: {what}")
        with tempfile.TemporaryDirectory() as folder:
            found = together(Job(processes, layers, folder))[0]
        at_once, stopped = 1000 * found["at_once"], 1000 * found["stopped"]
        results.append(
            Result(
                f"writing a checkpoint of {found['file_mb']:.0f} MB, {what}: training stopped for",
                ours=stopped,
                against="writing it at once",
                theirs=at_once,
                longer=True,
                goal=Goal("<=", 10, "%"),
                judged=100 * stopped / at_once,
                note=f"steps meanwhile take {found['slower']:.2f}x as long; in all, a save costs "
                f"{1000 * found['cost']:.0f} ms",
            )
        )
    return results


# -- in each process


def together(job: Job) -> list[dict[str, Any]]:
    """What each process found, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fresh = multiprocessing.get_context("spawn")
    pipes = [fresh.Pipe(duplex=False) for _ in range(job.processes)]
    started = [
        fresh.Process(target=work, args=(rank, port, job, there))
        for rank, (_, there) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    try:
        for _, there in pipes:
            there.close()
        return [here.recv() for here, _ in pipes]
    finally:
        for process in started:
            process.join(60)
            process.kill()


def work(rank: int, port: int, job: Job, pipe: Connection) -> None:
    """Train and save, and send what was found."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    torch.set_num_threads(1)
    keep_freed_memory()  # as `makemoe fit` does
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=job.processes)
    _, step = trained(Job(job.processes, 1), 32)
    step()  # what it imports is no state of the model
    before = resident_mb("VmRSS") or 0.0
    forget_peak()
    model, step = trained(job, D)
    built = resident_mb("VmHWM")
    forget_peak()
    for _ in range(STEPS):
        step()
    peak = resident_mb("VmHWM")
    found: dict[str, Any] = {
        "peak_mb": None if peak is None else peak - before,
        "built_mb": (built or 0.0) - before,
        "parameters": sum(p.numel() for p in model["net"].parameters()),
    }
    if job.folder is not None:
        found |= stops(job, model, step, Path(job.folder) / "last.ckpt")
    torch.distributed.barrier()
    pipe.send(found)
    pipe.close()
    os._exit(0)  # after gloo's collectives, Python's own end may abort the process


def trained(job: Job, width: int) -> tuple[dict[str, Any], Callable[[], None]]:
    """A model with its optimizer, and a step with as few tokens as possible."""
    torch.manual_seed(1)
    net = MoETransformer(V, T, job.layers, 2, width, EXPERTS, 2)
    if job.processes > 1:
        shard(net, Layout.of(job.processes, 1, True, 1), "cpu")
        return_freed_memory()  # as the strategy does
    optimizer = AdamW(net.parameters(), 1e-4)
    ids = torch.randint(V, (1, T))

    def step() -> None:
        logits, _ = net(ids)
        logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"net": net, "optimizer": optimizer}, step


def forget_peak() -> None:
    """Let VmHWM begin anew, on Linux."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def stops(
    job: Job, model: dict[str, Any], step: Callable[[], None], path: Path
) -> dict[str, float]:
    """Seconds of saving at once, and for which training stops if it is written beside."""
    saving: SafeCheckpointIO | PiecesIO = SafeCheckpointIO() if job.processes == 1 else PiecesIO()
    at_once, stopped, alone, meanwhile, costs = [], [], [], [], []
    for number in range(SAVES + 1):
        saving.beside = False
        torch.distributed.barrier()  # waiting for another process is no part of a save
        usual = median(seconds(step) for _ in range(STEPS))
        first = seconds(save, saving, model, path, 2 * number)
        saving.beside = True
        torch.distributed.barrier()
        stop = seconds(save, saving, model, path, 2 * number + 1)
        steps = []
        is_written = False
        while not is_written:
            steps.append(seconds(step))
            torch.distributed.barrier()
            begin = time.perf_counter()
            is_written = saving.attend()
            stop += time.perf_counter() - begin
        if number:  # the first one gets its memory from the system
            at_once.append(first)
            stopped.append(stop)
            alone.append(usual)
            meanwhile += steps
            costs.append(stop + sum(steps) - usual * len(steps))
    pieces = path.parent.rglob("*.ckpt")
    return {
        "at_once": median(at_once),
        "stopped": median(stopped),
        "slower": median(meanwhile) / median(alone),
        "cost": median(costs),
        "file_mb": sum(piece.stat().st_size for piece in pieces) / 1e6,
    }


def save(saving: Saving, model: dict[str, Any], path: Path, number: int) -> None:
    content: Checkpoint = {
        "state_dict": model["net"].state_dict(keep_vars=True),
        "optimizer_states": [model["optimizer"].state_dict()],
    }
    stamp(content, None)
    if isinstance(saving, PiecesIO):
        saving.save(content, path, f"{number:016x}")
    else:
        content["state_dict"] = model["net"].state_dict()
        saving.save_checkpoint(content, path)


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    begin = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - begin
