"""What becomes of freed memory between steps: kept in the process, or returned."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGE = 1 << 18
"""Bytes from which a buffer gets its own mapping where freed memory is returned."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory until the process ends; do nothing on other platforms.

    By default large buffers are returned to the kernel, and the next step must get every page
    again: at 16 thousand tokens on a CPU, that is more than a third of the step. The process stays
    at its peak size.
    """
    if (libc := glibc()) is not None:
        libc.mallopt(M_MMAP_MAX, 0)  # no buffer gets its own mapping
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def return_freed_memory() -> None:
    """Make glibc return freed memory to the kernel, from now on and what it has kept so far.

    For weights in parts: blocks that are gathered and forgotten leave holes of all sizes behind,
    and a process that kept them would take twice the memory.
    """
    if (libc := glibc()) is not None:
        libc.mallopt(M_MMAP_MAX, 1 << 16)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE)
        libc.malloc_trim(0)


def glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
