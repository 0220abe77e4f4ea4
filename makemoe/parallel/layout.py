"""How the processes are arranged: which hold copies, which hold parts, which hold other experts."""

from typing import NamedTuple

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from makemoe.errors import UsageError

REPLICATE, SHARD, EXPERTS = "replicate", "shard", "experts"
"""Names of the dimensions of a mesh."""


class Layout(NamedTuple):
    """Two arrangements of the same W processes; neighbours differ in the last dimension.

    Weights outside experts are on replicate x shard processes: each of the `shard` processes holds
    a part, and there are `replicate` copies. The experts are divided over `experts` processes, and
    each one's weights are in W / experts processes, copied or in parts as the others are.

    Attributes:
        replicate: number of copies of the weights.
        shard: number of parts of a copy.
        experts: number of processes that divide the experts among them.
    """

    replicate: int
    shard: int
    experts: int

    @staticmethod
    def of(processes: int, replicate: int, shard: bool, experts: int) -> "Layout":
        """The arrangement of so many processes; see `makemoe.parallel.Sharded`.

        Raises:
            UsageError: if they cannot be arranged so.
        """
        for name, size in (("replicate", replicate), ("experts", experts)):
            if size < 1:
                raise UsageError(f"{option(name)} {size} is too small: use 1 or more")
        if not shard and replicate not in (1, processes):
            raise UsageError(
                f"{option('replicate')} {replicate}: without shards, each of {processes} processes "
                f"has a copy; leave out replicate, or give {option('shard')} true"
            )
        if processes % replicate:
            raise UsageError(
                f"{option('replicate')} {replicate} does not divide {processes} processes (devices "
                "x num_nodes): use a divisor"
            )
        group = processes // replicate if shard else processes
        if group % experts:
            per_copy = " per copy" if shard and replicate > 1 else ""
            raise UsageError(
                f"{option('experts')} {experts} does not divide {group} processes{per_copy} "
                "(devices x num_nodes): use a divisor, or other devices"
            )
        return Layout(replicate, group, experts) if shard else Layout(processes, 1, experts)

    def meshes(self, device_type: str) -> tuple[DeviceMesh, DeviceMesh]:
        """The mesh of the weights outside experts, and that of the experts."""
        dense = init_device_mesh(
            device_type, (self.replicate, self.shard), mesh_dim_names=(REPLICATE, SHARD)
        )
        if self.experts == 1:
            return dense, dense
        names = REPLICATE, SHARD, EXPERTS
        return dense, init_device_mesh(device_type, self.sparse, mesh_dim_names=names)

    @property
    def sparse(self) -> tuple[int, int, int]:
        """Copies and parts of an expert's weights, and processes that divide the experts."""
        if self.shard > 1:
            return self.replicate, self.shard // self.experts, self.experts
        return self.replicate // self.experts, 1, self.experts


def option(name: str) -> str:
    """How a user sets an option of the strategy."""
    return f"--trainer.strategy.init_args.{name}"
