"""The C library's memory, kept between steps."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, for the life of the process; elsewhere do nothing.

    By default large buffers go back to the kernel, and the next step pays for every page of them
    anew: at 16 thousand tokens on a CPU a good third of the step. The process stays as large as it
    was at its peak.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    assert libc is not None
    libc.mallopt(M_MMAP_MAX, 0)  # no buffer gets pages of its own, that would be unmapped
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
