"""A signal to this process, in the middle of a run that it has started."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from makemoe.run import logged_losses


@contextmanager
def stopped_after(run: Path, losses: int) -> Iterator[None]:
    """Send SIGTERM to this process as soon as a run has logged so many losses."""
    over = threading.Event()

    def stop() -> None:
        while len(list(logged_losses(run))) < losses:
            if over.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
