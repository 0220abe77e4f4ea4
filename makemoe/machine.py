"""Memory limits of the machine, of its control groups and of this process; its cores."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

UNKNOWN = 1 << 60
"""Stands for an unknown limit; more than any machine has."""


def cores() -> int:
    """Number of the machine's cores (hardware threads) that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Memory(NamedTuple):
    """Limits in bytes: for all processes together, and for each process."""

    machine: int
    process: int


def memory() -> Memory:
    """The memory available here: physical memory or less, and the limits set for this process.

    Swap does not count: training from swap is too slow to finish.
    """
    return Memory(
        min([physical_memory(), *cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]),
        min([UNKNOWN, *process_limits()]),
    )


def physical_memory() -> int:
    """Memory of the machine, in bytes."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return UNKNOWN


def free_memory() -> int:
    """Memory that this process could still take, in bytes; 0 if it is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable:"))
        of_machine = int(free.split()[1]) << 10
        resident = Path("/proc/self/statm").read_text().split()[1]
        own = int(resident) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
    return max(0, min(of_machine, min(memory()) - own))


def process_limits() -> Iterator[int]:
    """Soft limits on the address space and the data of a process, as set by `ulimit`."""
    if resource is None:
        return
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft


def cgroup_limits(membership: Path, mounted: Path) -> Iterator[int]:
    """Limits of this process's control groups and their parents; versions 1 and 2.

    Args:
        membership: the file that lists the groups of this process.
        mounted: where control groups are mounted.
    """
    try:
        lines = membership.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            root, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / group.strip("/")
        # In a container the folder of its own group may be hidden, but the root is visible.
        for parent in (folder, *folder.parents):
            limit = _number_in(parent / name)
            if limit is not None:
                yield limit
            if parent == root:
                break


def _number_in(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # ValueError: "max"
        return None
