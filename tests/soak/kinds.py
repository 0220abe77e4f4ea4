"""The kinds of runs that are killed: strategy, launcher, workers, precision, accumulation."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

STRATEGY = "--trainer.strategy"
SMALL = (
    "--model.n_layer=1",
    "--model.n_embd=16",
    "--model.n_head=2",
    "--model.block_size=16",
    "--model.num_experts=4",
    "--model.router=NoisyTopKRouter",
    "--model.dropout=0.1",
    "--model.capacity_factor=1.0",
    "--data.batch_size=7",
    "--data.eval_batch_size=512",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=3",
    "--trainer.val_check_interval=25",
    "--trainer.limit_val_batches=2",
    "--run.save_every_n_steps=4",
    "--run.sample_tokens=20",
    "--run.pictures=false",
)
# What else a checkpoint holds of a run: both methods of Muon, a schedule, an average, biases.
RICH = (
    "--model.optimizer=Muon",
    "--model.param_groups=MuonMatrices",
    "--model.lr_scheduler=WarmupCosine",
    "--model.lr_scheduler.warmup_steps=10",
    "--model.lr_scheduler.total_steps=1000",
    "--model.averaging=ExponentialAverage",
    "--model.averaging.decay=0.9",
    "--trainer.gradient_clip_val=0.5",
)
ACCUMULATED = ("--trainer.accumulate_grad_batches=2",)
WORKERS = ("--data.num_workers=2",)
BF16 = ("--trainer.precision=bf16-mixed",)
DDP = (f"{STRATEGY}=ddp",)
FSDP = (f"{STRATEGY}.class_path=makemoe.parallel.Sharded",)
PIECES = (f"{STRATEGY}.init_args.gather=false",)
EXPERTS = (*FSDP, f"{STRATEGY}.init_args.experts=2", f"{STRATEGY}.init_args.shard=false")
BOTH = (*FSDP, f"{STRATEGY}.init_args.experts=2")

SIDE, LIGHTNING, TORCHRUN, RESTARTS = "side by side", "lightning", "torchrun", "restarts"
MACHINES = "machines"
"""How processes are started: side by side; by Lightning; by torchrun, which may also start them
again by itself; or as srun does it, each on a machine of its own."""


class Kind(NamedTuple):
    """A kind of run.

    Attributes:
        name: in the log and in the report.
        launcher: how its processes are started.
        processes: how many there are.
        options: of `makemoe fit`.
        steps: how long it trains.
    """

    name: str
    launcher: str
    processes: int
    options: tuple[str, ...]
    steps: int = 90

    def command(self, root: Path, resumed: bool = False) -> list[str]:
        """What starts the run in `root`, or resumes it: arguments of makemoe, or a command."""
        machines = self.processes if self.launcher == MACHINES else 1
        devices = self.processes // machines
        place = [f"--run.root={root}", f"--trainer.devices={devices}"]
        if machines > 1:
            place.append(f"--trainer.num_nodes={machines}")
        strategy = [option for option in self.options if option.startswith(STRATEGY)]
        if resumed:
            more = (f"--ckpt_path={root}/run/last.ckpt", *strategy)
        else:
            more = (*SMALL, *self.options, f"--trainer.max_steps={self.steps}", "--run.name=run")
        makemoe = ["fit", *more, *place]
        if self.launcher in (SIDE, LIGHTNING, MACHINES):
            return makemoe
        restarts = "100" if self.launcher == RESTARTS else "0"
        torchrun = str(Path(sys.executable).parent / "torchrun")
        processes = ("--standalone", f"--nproc_per_node={self.processes}")
        torchrun_itself = [sys.executable, torchrun, *processes, f"--max_restarts={restarts}"]
        return [*torchrun_itself, "-m", "makemoe", *makemoe]


KINDS = (
    Kind("one process", SIDE, 1, ACCUMULATED + RICH, 800),
    Kind("one process, bf16, 2 workers", SIDE, 1, BF16 + WORKERS, 800),
    Kind("DDP", SIDE, 2, DDP + ACCUMULATED + RICH),
    Kind("DDP, started by Lightning, 2 workers", LIGHTNING, 2, DDP + WORKERS),
    Kind("DDP, restarted by torchrun", RESTARTS, 2, DDP + ACCUMULATED),
    Kind("FSDP2", SIDE, 2, FSDP + RICH),
    Kind("FSDP2, bf16, 2 workers", SIDE, 2, FSDP + BF16 + ACCUMULATED + WORKERS),
    Kind("FSDP2, checkpoints in pieces", SIDE, 2, FSDP + PIECES + RICH),
    Kind("experts", SIDE, 2, EXPERTS + RICH + ACCUMULATED),
    Kind("experts, started by torchrun", TORCHRUN, 2, EXPERTS + WORKERS),
    Kind("experts and FSDP2", SIDE, 2, BOTH + BF16),
)

STOPPED_KINDS = (
    Kind("DDP on two machines", MACHINES, 2, DDP + ACCUMULATED + RICH),
    Kind("FSDP2 on two machines, checkpoints in pieces", MACHINES, 2, FSDP + PIECES + WORKERS),
    Kind("experts on two machines", MACHINES, 2, EXPERTS + BF16),
)
"""Kinds that are asked to stop, instead of killed."""


def environment(mark: str) -> dict[str, str]:
    """The environment of a run, by which its processes are found again."""
    dropped = ("MAKEMOE_RUN_FOLDER", "MAKEMOE_CHECKPOINT")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    # One thread: with several, the order of additions depends on how many the machine lends.
    return kept | {"OMP_NUM_THREADS": "1", MARK: mark, "PYTHONUNBUFFERED": "1"}


MARK = "MAKEMOE_SOAK"
