"""What a process that loads batches does at its start, and if the one it loads for is killed."""

import os
import sys
import time
from types import TracebackType

ORPHANED_S = 1.0
"""So long after its last sign, a killed process is known to have ended."""


def end_quietly(number: int) -> None:
    """Let this process print no traceback because the one it loads for was killed.

    torch sends a batch through a thread, in which an exception reaches `sys.excepthook` if the
    receiver vanishes in the middle. That the receiver was killed is said elsewhere, in one line.

    Args:
        number: of this process among those that load, as `DataLoader` gives it.
    """
    usual, parent = sys.excepthook, os.getppid()

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        end = time.monotonic() + ORPHANED_S
        while time.monotonic() < end:
            if os.getppid() != parent:
                return
            time.sleep(ORPHANED_S / 100)
        usual(kind, error, trace)

    sys.excepthook = told
