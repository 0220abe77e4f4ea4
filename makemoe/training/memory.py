"""Keeps freed memory in the process between steps."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Make glibc keep freed memory until the process ends; do nothing on other platforms.

    By default large buffers are returned to the kernel, and the next step must get every page
    again: at 16 thousand tokens on a CPU, that is more than a third of the step. The process stays
    at its peak size.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    assert libc is not None
    libc.mallopt(M_MMAP_MAX, 0)  # no buffer gets its own mapping
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
