"""Who shares a batch: the processes that train one model, each on its part of every batch."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from makemoe.errors import UsageError


@dataclass(frozen=True)
class Group:
    """One process alone, which has every batch to itself.

    Attributes:
        rank: index of this process in the group.
        size: number of processes in the group.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def joined(processes: int = 1) -> "Group":
        """The group of all processes that torch.distributed has connected, if it has.

        Raises:
            UsageError: if the strategy's number of `processes` is another.
        """
        group = ALONE
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            group = Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
        if processes not in (1, group.size):
            raise UsageError(
                f"--trainer.strategy: its {processes} processes are not a group of "
                "torch.distributed, so losses and counts cannot be summed: use ddp"
            )
        return group

    def slice_of(self, length: int) -> slice:
        """This process's slice of a whole; the sizes of the slices differ by at most one."""
        return slice(length * self.rank // self.size, length * (self.rank + 1) // self.size)

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes."""
        return

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace a tensor by that of rank 0."""
        return

    def gather(self, tensor: Tensor) -> tuple[Tensor, slice]:
        """Concatenate the tensors of all processes along dimension 0, in the order of the ranks.

        Their lengths may differ, their other dimensions may not.

        Returns:
            the whole, the same on every process, and the slice of it that came from this process.
        """
        return tensor, slice(0, len(tensor))


ALONE = Group()
"""The group of a process that shares its batches with no other."""


class Processes(Group):
    """Several processes, connected by torch.distributed.

    It holds numbers only, so a model that has it can be copied and pickled.
    """

    def sum_(self, tensor: Tensor) -> None:
        torch.distributed.all_reduce(tensor)

    def broadcast_(self, tensor: Tensor) -> None:
        torch.distributed.broadcast(tensor, 0)

    def gather(self, tensor: Tensor) -> tuple[Tensor, slice]:
        own = torch.tensor([len(tensor)], device=tensor.device)
        lengths = torch.cat(self.gather_alike(own)).tolist()
        # The collective needs equal lengths.
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = zip(self.gather_alike(padded), lengths, strict=True)
        begin = sum(lengths[: self.rank])
        whole = torch.cat([part[:length] for part, length in parts])
        return whole, slice(begin, begin + len(tensor))

    def gather_alike(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, in the order of the ranks; all have one shape."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor)
        return parts


def keep_buffers(model: Module) -> None:
    """Let DDP leave alone the buffers of this package, which it would send with every step.

    They are the same in all processes: tables that never change, and biases that all change alike.
    """
    own = [
        part for part in model.named_modules() if type(part[1]).__module__.startswith("makemoe.")
    ]
    names = [f"{name}.{key}" for name, part in own for key, _ in part.named_buffers(recurse=False)]
    ignore: Any = DistributedDataParallel
    ignore._set_params_and_buffers_to_ignore_for_model(model, names)
