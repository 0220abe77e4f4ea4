"""What each of several processes measures of the memory that training takes."""

import ctypes
import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from makemoe.model.experts import MLPExperts
from makemoe.model.footprint import footprint
from makemoe.model.transformer import MoETransformer
from makemoe.parallel.layout import Layout
from makemoe.parallel.sharding import shard
from makemoe.parallel.stored import Kept, stored
from makemoe.parallel.traffic import Sizes, Step
from makemoe.shards import here
from makemoe.training.losses import cross_entropy
from makemoe.training.muon import Muon, MuonMatrices
from makemoe.training.optim import build_optimizer
from makemoe.training.param_groups import OneGroup, weights_of
from makemoe.training.plan import Steps

LAYOUTS: dict[str, dict[str, Any] | None] = {
    "DDP": None,
    "FSDP2": {"experts": 1, "shard": True},
    "experts": {"experts": 2, "shard": False},
    "experts and FSDP2": {"experts": 2, "shard": True},
}


SMALL, LARGE = (32, 2, 64), (256, 4, 1024)
"""Width of a model, its layers, and the width of its experts; the large one has 18 M weights."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt


def new_net(width: int, layers: int, hidden: int) -> MoETransformer:
    torch.manual_seed(3)
    experts = partial(MLPExperts, hidden=hidden)
    return MoETransformer(64, 32, layers, 4, width, 8, 2, experts=experts)


class Trained:
    """A model in one layout, with its optimizer."""

    def __init__(
        self, name: str, size: Sequence[int], muon: bool = False, half: bool = False
    ) -> None:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        self.W = torch.distributed.get_world_size()
        self.net = new_net(*size)
        self.sizes = Sizes.of(self.net)
        self.outer = footprint(self.net.architecture).outer
        self.half = half
        self.layout: Layout | None = None
        self.model: Any = self.net
        how = LAYOUTS[name]
        if how is None:
            self.model = DistributedDataParallel(self.net)
        else:
            self.layout = Layout.of(self.W, 1, how["shard"], how["experts"])
            shard(self.net, self.layout, "cpu")
        policy = MuonMatrices() if muon else OneGroup()
        of = Muon if muon else torch.optim.AdamW
        self.optimizer: Optimizer = build_optimizer(of, policy, weights_of(self.net))
        self.moments = 1 if muon else 2
        self.ids = torch.randint(64, (8, 32))

    def step(self) -> None:
        """A step in Lightning's order: old gradients last until the backward pass."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            logits, _ = self.model(self.ids)
            loss = cross_entropy(logits, self.ids)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def formula(self) -> dict[str, int]:
        """Bytes by purpose."""
        product = 2 if self.half else 4
        model = self.net.architecture
        steps = Steps(batch_size=len(self.ids), steps=-1, number_bytes=product)
        activations = steps.training(model, footprint(model))["activations"]
        kept = Kept(self.moments, self.outer, 2, averages=False, activations=activations)
        step = Step(self.ids.numel(), product_bytes=product)
        return stored(self.sizes, self.layout, step, kept)


def check() -> None:
    """Weights, gradients and the optimizer's state are as large as the formula says."""
    for name in LAYOUTS:
        for muon in (False, True):
            trained = Trained(name, SMALL, muon)
            trained.step()
            parameters = list(trained.net.parameters())
            states = trained.optimizer.state.values()
            found = {
                "weights": sum(here(p).nbytes for p in parameters),
                "gradients": sum(here(p.grad).nbytes for p in parameters if p.grad is not None),
                "optimizer state": sum(
                    here(value).nbytes
                    for state in states
                    for value in state.values()
                    if isinstance(value, torch.Tensor) and value.ndim
                ),
            }
            formula = trained.formula()
            for part, nbytes in found.items():
                # With Muon, the formula takes vectors for matrices.
                most = 1.15 if muon and part == "optimizer state" else 1.01
                assert 0.99 <= nbytes / formula[part] <= most, (name, muon, part)


def memory(what: str) -> int:
    """The process's memory now (VmRSS) or at most (VmHWM), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) << 10
    raise AssertionError(what)


def check_peak() -> None:
    """The largest memory of a step is what the formula says."""
    # Freed memory goes back to the system at once, so that it does not count.
    libc = ctypes.CDLL(None)
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        libc.mallopt(option, 1 << 16)
    for half in (False, True):
        for name in LAYOUTS:
            Trained(name, SMALL, half=half).step()
            gc.collect()
            before = memory("VmRSS")
            trained = Trained(name, LARGE, half=half)
            trained.step()
            Path("/proc/self/clear_refs").write_text("5")
            trained.step()
            measured = memory("VmHWM") - before
            formula = sum(trained.formula().values())
            print(
                f"{name}{', bf16' * half}: {measured / 1e6:.0f} MB, by formula {formula / 1e6:.0f}",
                {part: round(nbytes / 1e6) for part, nbytes in trained.formula().items()},
            )
            assert 0.8 < formula / measured < 1.2, name
            del trained
            gc.collect()
