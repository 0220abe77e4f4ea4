"""Counts what several processes send: bytes against the formulas, and DDP's collectives."""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed

from benchmarks.counted import counting, rows_leaving
from benchmarks.measure import Bench
from benchmarks.models import RECIPE, TINY, Size, batches, ours
from benchmarks.processes import together
from benchmarks.report import Goal, Result
from makemoe.cli import main
from makemoe.parallel.layout import Layout
from makemoe.parallel.sharding import shard
from makemoe.parallel.traffic import Sizes, Step, sent_by_sharded
from makemoe.run import FOLDER_VARIABLE

ROWS = "tokens", "counts"
STEPS = 10, 30
"""Lengths of two runs, whose difference is that of steps alone; processes agree on signals every
tenth step."""

SMALL = (
    *("--model.n_layer=2", "--model.n_embd=32", "--model.n_head=2"),
    *("--model.block_size=16", "--model.num_experts=4", "--data.batch_size=8"),
    *("--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2"),
    *("--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=1000"),
    *("--run.pictures=false", "--run.sample_tokens=0", "--trainer.enable_progress_bar=false"),
)
"""A model whose gradients are one bucket."""

BALANCERS = {
    "no balancer": (),
    "BiasBalance": (
        "--model.router=makemoe.model.router.BiasedTopKRouter",
        "--model.balancers=[makemoe.training.balance.BiasBalance]",
    ),
    "SwitchLoss": ("--model.balancers=[makemoe.training.balance.SwitchLoss]",),
}


def experts_bytes(bench: Bench) -> list[Result]:
    """Bytes that experts on 2 and 4 processes send, against the formulas of docs/scaling.md."""
    size = bench.choose(RECIPE, TINY)
    results = []
    for processes in bench.choose((2, 4), (2,)):
        bench.say(f"bytes of experts on {processes} processes")
        counted = together(processes, __name__, "count_bytes", list(size))
        sent, formula, even = (sum(one[i] for one in counted) / processes / 1e6 for i in range(3))
        results.append(
            Result(
                f"bytes of a step, experts on {processes} processes, {size}",
                "float32",
                sent,
                "the formula, for the tokens that travel",
                formula,
                unit="MB",
                goal=Goal("<=", 1, "%"),
                judged=100 * abs(sent / formula - 1),
                longer=True,
                note=f"for even loads, the formula is off by {100 * abs(even / sent - 1):.1f} %",
            )
        )
    return results


def count_bytes(size: Sequence[int]) -> tuple[float, float, float]:
    """Bytes that one process sends in a step: counted; by formula; by formula for even loads."""
    torch.distributed.init_process_group("gloo")
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    shape = Size(*size)
    net = ours(shape)
    sizes, layout = Sizes.of(net), Layout.of(processes, 1, True, processes)
    shard(net, layout, "cpu")
    ids = batches(shape, processes, "cpu")[rank][0]
    with counting() as sent:
        logits, routings = net(ids)
        logits.square().mean().backward()
    step = Step(shape.tokens)
    formula = {one.what: one.nbytes for one in sent_by_sharded(sizes, layout, step)}
    held = net.num_experts // processes
    rows = 4 * rows_leaving(routings, held, rank) * net.n_embd * step.product_bytes
    real = formula | {"tokens": float(rows)}
    return sent["weights"] + sent["rows"], sum(real.values()), sum(formula.values())


def collectives(bench: Bench) -> list[Result]:
    """Collectives of DDP per step beyond its gradients, counted by gloo in two processes."""
    bench.say("collectives of DDP")
    counted = together(2, __name__, "count_collectives", bench.choose(STEPS, (10, 20)))[0]
    return [
        Result(
            f"DDP's collectives per step beyond the gradients, {name}",
            ours=beyond,
            unit="collectives",
            goal=Goal("<=", 1, "collectives"),
            judged=beyond,
        )
        for name, beyond in counted.items()
    ]


def count_collectives(steps: Sequence[int]) -> dict[str, float]:
    """Collectives per step beyond the gradients, which are one here, with each kind of balancer.

    Args:
        steps: of two runs; what they differ by belongs to steps alone.
    """
    found = {}
    for name, words in BALANCERS.items():
        for number, told in ((1, "a batch"), (4, "4 batches")):
            options = [*words, f"--trainer.accumulate_grad_batches={number}"]
            few, many = (collectives_of(options, length) for length in steps)
            found[f"{name}, {told} per step"] = (many - few) / (steps[1] - steps[0]) - 1
    return found


def collectives_of(options: Sequence[str], steps: int) -> int:
    """Collectives of a fit in this process, those in torch's own code too."""
    os.environ.pop(FOLDER_VARIABLE, None)  # of the run before
    before = called()
    with tempfile.TemporaryDirectory() as folder:
        of_run = [f"--run.root={folder}", "--run.name=it", f"--trainer.max_steps={steps}"]
        status = main(["fit", *SMALL, *options, *of_run])
    if status:
        raise RuntimeError(f"fit ended with status {status}")
    return called() - before


def called() -> int:
    """Collectives so far, as the group of all processes numbers them."""
    if not torch.distributed.is_initialized():
        return 0
    everyone: Any = torch.distributed.group.WORLD
    number: int = everyone._get_sequence_number_for_group()
    return number
