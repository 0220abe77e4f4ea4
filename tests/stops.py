"""A signal to this process, in the middle of a run that it has started."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from makemoe.run import logged_losses


@contextmanager
def stopped_after(run: Path, losses: int) -> Iterator[None]:
    """Send SIGTERM to this process as soon as a run has logged so many losses."""

    def stop() -> None:
        while len(list(logged_losses(run))) < losses:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    yield
    thread.join()
