"""Lightning's strategy for weights in parts: FSDP2 and expert parallelism."""

import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from makemoe.errors import UsageError
from makemoe.model.transformer import MoETransformer
from makemoe.parallel.layout import Layout
from makemoe.parallel.saving import PiecesIO
from makemoe.parallel.sharding import check_experts, shard
from makemoe.shards import cut, gathered, has_shards
from makemoe.training.memory import return_freed_memory

PRECISIONS = "32-true", "bf16-mixed", "bf16-true", "64-true"
ALIASES = "32", "bf16", "64", "None"


class Sharded(ModelParallelStrategy):
    """Divides weights, gradients and optimizer state over the processes (arXiv:2304.11277).

    Each process computes its part of every batch, as with DDP, and gathers the weights of a block
    when it is needed. With `experts`, each process holds other experts, and tokens travel to them.
    Checkpoints can be resumed with any strategy on any number of processes.

    Args:
        experts: number of processes that divide the experts among them; 1: experts are divided as
            other weights are.
        replicate: number of copies of all weights, such as one per machine.
        shard: whether weights are divided; if not, each process has a copy, except of the experts
            that `experts` gives to others.
        gather: whether a checkpoint is one file, for which the first process puts the whole model
            together in its memory; if not, each process writes its part to a file beside it.
        timeout: how long a process waits for the others; null: as long as torch does.
        process_group_backend: how the processes talk; null: NCCL on GPUs, else gloo.
    """

    def __init__(
        self,
        experts: int = 1,
        replicate: int = 1,
        shard: bool = True,
        gather: bool = True,
        timeout: timedelta | None = None,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.experts, self.replicate, self.shard = experts, replicate, shard
        self.gather, self.pieces = gather, PiecesIO()
        self.layout = Layout(1, 1, 1)

    def check(self, net: MoETransformer, processes: int, precision: Any) -> None:
        """Raise UsageError for what this strategy cannot do, before any process starts."""
        Layout.of(processes, self.replicate, self.shard, self.experts)
        check_experts(net, self.experts)
        if str(precision) not in PRECISIONS + ALIASES:
            raise UsageError(
                f"--trainer.precision {precision} does not work with weights in parts: use "
                f"{', '.join(PRECISIONS)}"
            )

    # -- setting up

    def setup_environment(self) -> None:
        # Lightning's own mesh, by which it divides data: each process has other data.
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()
        self.layout = Layout.of(self.world_size, self.replicate, self.shard, self.experts)

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        net = self.model.net
        assert isinstance(net, MoETransformer)
        if not has_shards(net):  # a second fit goes on with what the first one divided
            check_experts(net, self.experts)
            shard(net, self.layout, self.root_device.type)
            return_freed_memory()
        self.model_to_device()
        # What FSDP2 gathers in inference mode could not be trained afterwards.
        for loop in (
            trainer.fit_loop.epoch_loop.val_loop,
            trainer.validate_loop,
            trainer.test_loop,
            trainer.predict_loop,
        ):
            loop.inference_mode = False
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Leave gradients where they are until the last batch of a step."""
        assert self.model is not None
        parts = [part for part in self.model.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for part in parts:
                part.set_requires_gradient_sync(True, recurse=False)

    # -- checkpoints: in the layout of one process, as one file or in pieces

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Yes, as with one process: after the model has applied changed settings to the state."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, still in parts; those with several names are one tensor."""
        assert self.lightning_module is not None
        return dict(self.lightning_module.state_dict(keep_vars=True))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of the optimizer, still in parts."""
        return ParallelStrategy.optimizer_state(self, optimizer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Write one file, tensor by tensor, or each process its piece; all processes must call."""
        if self.gather:
            path = self.broadcast(filepath)
            whole = gathered(checkpoint, keeps=self.is_global_zero)
            ParallelStrategy.save_checkpoint(self, whole, path, storage_options)
            return
        path, save = self.broadcast((filepath, secrets.token_hex(8)))
        self.pieces.save(checkpoint, Path(path), save)

    def teardown(self) -> None:
        self.pieces.teardown()
        super().teardown()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read it in each process; what is not used of it stays on the disk."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the weights; the model takes its part of each."""
        ParallelStrategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the state of the optimizer: for each weight, the part of it that is here."""
        states = [
            optimizer_parts(optimizer, state)
            for optimizer, state in zip(
                self.optimizers, checkpoint["optimizer_states"], strict=True
            )
        ]
        ParallelStrategy.load_optimizer_state_dict(self, {"optimizer_states": states})


def optimizer_parts(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state with what has the shape of a weight cut as the weight is."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = {
        number: {
            name: cut(value, weights[number]) if hasattr(value, "shape") else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": kept}
