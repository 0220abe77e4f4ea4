"""How a failing command ends: with one line on standard error, and an exit status."""

import errno
import os
import re
import sys
import time
from collections.abc import Sequence

from makemoe import __version__, process
from makemoe.cli import others
from makemoe.cli.interrupts import is_child
from makemoe.cli.streams import close_output
from makemoe.errors import DISK_FAULTS, FULL, MakeMoEError

FAULT = 70
"""Exit status of a bug in makemoe (EX_SOFTWARE in sysexits.h)."""

REPORT = "report it (docs/reliability.md says how)"
LONGEST_REASON = 300
LONGEST_LINE = 360

OTHERS_TELL_S = 3.0
"""How long a child process waits, so that the first process can report a shared error."""

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|out of memory|not enough memory|Storage size calculation overflowed"
)
SMALLER = {
    "fit": "lower --data.batch_size, --data.eval_batch_size, --model.block_size, --model.n_embd, "
    "--model.n_layer or --model.num_experts",
    "validate": "lower --data.eval_batch_size",
    "test": "lower --data.eval_batch_size",
    "predict": "lower --num_samples, or give fewer prompts",
}
ANOTHER_ENDED = re.compile(
    r"gloo|nccl|Dist\w*Error|connection (closed|reset|refused)|pair closure|timed? ?out"
    r"|broken pipe",
    re.IGNORECASE,
)


def tell(error: BaseException, arguments: Sequence[str]) -> int:
    """Print in one line what is wrong and how to fix it, and return the exit status.

    Args:
        error: the exception that ended the command.
        arguments: the command and its options.
    """
    if isinstance(error, BrokenPipeError):
        close_output()  # the reader has closed the pipe
        return 1
    known = isinstance(error, MakeMoEError)
    if not known and os.environ.get("MAKEMOE_DEBUG", "0") not in ("", "0"):
        import traceback  # at the top, it would slow down every start

        traceback.print_exception(error)
    command = arguments[0] if arguments else ""
    if isinstance(error, MakeMoEError):
        return fail(str(error), error.exit_status)
    if is_out_of_memory(error):
        return fail(memory_ran_out(error, command), 1)
    if isinstance(error, OSError):
        if command != "fit" and error.errno in DISK_FAULTS:
            close_output()
        return fail(what_the_system_says(error, arguments), 1)
    if others.current is not None and ANOTHER_ENDED.search(reason_of(error)):
        others.current.await_verdict()
        return fail(f"another process of this run has ended ({reason_of(error)})", 1)
    return fail(
        f"this is a bug in makemoe {__version__}: {reason_of(error)}; please {REPORT}"
        + ("" if "MAKEMOE_DEBUG" in os.environ else "; MAKEMOE_DEBUG=1 shows the traceback"),
        FAULT,
    )


def fail(message: str, status: int) -> int:
    """Print an error in one line and return the exit status.

    Of several processes that fail, the first one on a machine prints it, and ends the others.

    Args:
        message: what is wrong, and how to fix it.
        status: the exit status.
    """
    message = readable(message)
    if others.current is not None:
        others.current.fail(message, status)  # which ends this process, if there are others
    if is_child():
        time.sleep(OTHERS_TELL_S)
    which = f" in {process.name()}" if is_child() else ""
    print(f"makemoe: error{which}: {message}", file=sys.stderr)
    return status


def readable(message: str) -> str:
    """A message as one line that is safe to print, whatever text of the user it contains.

    Control characters, which may move the cursor or reverse the text, are shown as escapes.
    """
    if len(message) > LONGEST_LINE:  # the beginning says what is wrong, the end how to fix it
        half = LONGEST_LINE // 2
        message = f"{message[:half]} ... {message[-half:]}"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in message
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, the system or torch means that memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None
    )


def memory_ran_out(error: BaseException, command: str) -> str:
    """The message when memory ran out: which sizes to lower."""
    asked = re.search(r"[Tt]ried to allocate (\d[\d.]* ?\w+)", str(error))
    figure = f" (tried to allocate {asked.group(1)})" if asked else ""
    mend = SMALLER.get(command, "use a machine or a --device with more")
    return f"memory ran out{figure}: {mend}"


def what_the_system_says(error: OSError, arguments: Sequence[str]) -> str:
    """The message about a system error: the file, the reason, and another place for a run."""
    if error.errno is None or error.strerror is None:
        return reason_of(error)
    file = error.filename
    if error.errno not in DISK_FAULTS or is_unreadable(file):
        return f"{file}: {error.strerror}" if file else error.strerror
    if arguments[:1] != ["fit"]:  # only fit writes a run's files
        return f"cannot write {file or 'standard output'}: {error.strerror}"
    mend = "free some space" if error.errno in FULL else "allow writing to it"
    resumes = any(argument.startswith("--ckpt_path") for argument in arguments)
    elsewhere = "--run.root DIR"
    if resumes:  # a resumed run uses the checkpoint's folder otherwise
        elsewhere = "--ckpt_path FILE --run.root DIR --run.name NAME"
    return (
        f"cannot write {file or 'to the disk'}: {error.strerror}; "
        f"{mend}, or choose another folder: {elsewhere}"
    )


def is_unreadable(file: str | bytes | int | None) -> bool:
    """Whether the file exists but may not be read."""
    return file is not None and os.path.isfile(file) and not os.access(file, os.R_OK)


def reason_of(error: BaseException) -> str:
    """An exception's kind and text, in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."
