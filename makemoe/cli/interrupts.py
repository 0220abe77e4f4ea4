"""Ctrl-C ends the program at any moment, whichever library is running and however it reacts.

While the program starts, Ctrl-C ends it at once: there is nothing to clean up, and libraries
swallow a KeyboardInterrupt that is raised during their import. After `work`, Ctrl-C raises one, so
that `finally` blocks remove unfinished files. A thread ends the program if that takes longer than
GRACE_S. During training, the callback `StopOnSignal` handles the signal. During shutdown, the
system handles it.
"""

import _thread
import atexit
import os
import signal
import sys
import time
from types import FrameType

from makemoe import process

GRACE_S = 1.0
PARENT_POLL_S = 0.5
GIVE_UP = 0
"""Written to the wake-up pipe, which also gets signal numbers: the grace period starts."""

PARENT_VARIABLE = "MAKEMOE_PARENT"
"""Environment variable with the id of a process that this one must not outlive."""

received = False
"""Whether Ctrl-C is about to end the program."""

_wake_up = -1


def is_child() -> bool:
    """Whether this process was started by another one of the same run."""
    return process.local_rank() > 0


def status() -> int:
    """The exit status after Ctrl-C.

    0 in a child: Lightning kills the first process when a child ends with another status.
    """
    return 0 if is_child() else 128 + signal.SIGINT


def begin() -> None:
    """Replace Python's handler of Ctrl-C. The first thing the program does."""
    signal.signal(signal.SIGINT, _end)
    if is_child() or process.is_elastic():
        _thread.start_new_thread(_end_with, (os.getppid(),))
    elif parent := os.environ.get(PARENT_VARIABLE, ""):
        _thread.start_new_thread(_stop_with, (int(parent),))


def work() -> None:
    """Raise KeyboardInterrupt from now on, so that files are cleaned up.

    Does nothing unless `begin` was called.
    """
    global _wake_up
    if signal.getsignal(signal.SIGINT) is not _end:
        return
    reading, _wake_up = os.pipe()
    os.set_blocking(_wake_up, False)
    _thread.start_new_thread(_watch, (reading,))
    os.register_at_fork(after_in_child=_leave_to_parent)
    signal.set_wakeup_fd(_wake_up, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _interrupt)


def end() -> None:
    """Leave Ctrl-C to the system, because Python calls no handlers during shutdown.

    After a Ctrl-C, end the process here: Python's shutdown waits for threads, and destructors wait
    for other processes, while `_watch` no longer runs.
    """
    if received:
        atexit._run_exitfuncs()
        os._exit(status())
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(status())


def _interrupt(number: int, frame: FrameType | None) -> None:
    global received
    import threading  # already imported by now; at the top it would delay `begin`

    if received:
        _end(number, frame)
    received = True
    sys.excepthook = sys.unraisablehook = _say_nothing
    threading.excepthook = _say_nothing
    os.write(_wake_up, bytes([GIVE_UP]))
    raise KeyboardInterrupt


def _watch(pipe: int) -> None:
    """End the program if the main thread does not, because it waits or has lost the interrupt.

    Args:
        pipe: receives the number of every signal, even if the main thread cannot handle it now.
    """
    pressed = 0
    while True:
        number = os.read(pipe, 1)[0]
        pressed += number == signal.SIGINT
        in_training = signal.getsignal(signal.SIGINT) is not _interrupt
        # The first one in training is a request to finish the step.
        if number == GIVE_UP or (number == signal.SIGINT and (pressed > 1 or not in_training)):
            time.sleep(GRACE_S)
            os._exit(status())


def _leave_to_parent() -> None:
    """Ignore Ctrl-C in a process that loads batches: its parent handles it and ends the process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with(parent: int) -> None:
    """End this process after the one that started it has ended, since it would wait forever."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(status())


def _stop_with(parent: int) -> None:
    """Stop this process, as SIGTERM does, after the one that started it has ended.

    If that one has asked for it before, this process saves: a second signal would end it at once.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    if not process.stops:
        os.kill(os.getpid(), signal.SIGTERM)


def _say_nothing(*_: object) -> None:
    """Replaces hooks that print a traceback."""
