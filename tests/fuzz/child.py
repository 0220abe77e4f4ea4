"""Runs command lines in forks of one process that has loaded everything."""

import atexit
import contextlib
import ctypes
import faulthandler
import importlib
import os
import pkgutil
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import torch

from fuzz.folder import OWNER

SECONDS = 20.0
MEMORY = 2 << 30
OUTPUT = 256 << 20
PROCESSES = 24
FAULT_OF_THE_HARNESS = 77
PATIENCE_S = 3.0
"""After this long a command that may run for hours is interrupted."""

NOWHERE = "http://127.0.0.1:9"


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        status: its exit status, or minus the signal that killed it.
        seconds: wall time.
        peak: most memory in use, the loaded program's included, bytes.
        timed_out: it had to be killed.
        interrupted: it got a Ctrl-C, because it may run for hours.
        left_running: processes that it had started and left.
        most: processes at once.
        cpu_s: processor time.
        stack: where it was when its time was nearly up.
    """

    status: int
    out: bytes
    err: str
    seconds: float
    peak: int
    timed_out: bool = False
    interrupted: bool = False
    left_running: int = 0
    most: int = 1
    cpu_s: float = 0.0
    stack: str = ""


def load() -> None:
    """Import all that the commands import, start no thread."""
    torch.set_num_threads(1)
    import makemoe.cli

    commands = [module.name for module in pkgutil.iter_modules(makemoe.cli.__path__)]
    for module in (
        *(f"makemoe.cli.{name}" for name in commands),
        "makemoe.tracking.pictures",
        "matplotlib.font_manager",
    ):
        importlib.import_module(module)
    keep_parser()
    check_alone()


class Built(Exception):
    """Carries a command line out of its making, when it has a parser."""


def keep_parser() -> None:
    """Build the parser of fit, validate and test once: it takes longer than most commands.

    It knows nothing of the input, and each fork has its own copy.
    """
    from makemoe.claim import OwnFolder
    from makemoe.cli.training import TrainingCLI

    def carry_out(cli: TrainingCLI, *_: object) -> None:
        raise Built(cli)

    def set_parser(cli: TrainingCLI, *_: object) -> None:
        for name in ("parser", "_subcommand_parsers", "_subcommand_method_arguments"):
            setattr(cli, name, getattr(made, name))

    parse = TrainingCLI.parse_arguments
    TrainingCLI.parse_arguments = carry_out  # type: ignore[method-assign, assignment]
    try:
        TrainingCLI(["fit"], OwnFolder())
    except Built as built:
        (made,) = built.args
    TrainingCLI.parse_arguments = parse  # type: ignore[method-assign]
    TrainingCLI.setup_parser = set_parser  # type: ignore[method-assign, assignment]


def check_alone() -> None:
    """A fork has the calling thread only: what other threads do or hold would be lost."""
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: {threading.enumerate()}"


def run(
    argv: list[str],
    scratch: Path,
    *,
    may_go_on: bool = False,
    seconds: float = SECONDS,
    debug: bool = False,
    output: str = "file",
    call: Callable[[list[str]], int] | None = None,
) -> Ended:
    """Run one command line in `scratch/work`; of `call` in place of makemoe, for its own tests."""
    check_alone()
    out, err = scratch / "stdout", scratch / "stderr"
    held = _data()
    stack = scratch / "stack"
    begun = time.monotonic()
    watch = stack.open("w")
    pid = os.fork()
    if pid == 0:
        status = FAULT_OF_THE_HARNESS
        try:
            _confine(scratch, out, err, held, debug)
            OUTPUTS[output]()
            faulthandler.dump_traceback_later(max(0.5, seconds - 1), file=watch)
            status = (call or makemoe)(argv)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):  # what Python does at its end may fail
                sys.stdout.flush()
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    ended = _wait(pid, begun, seconds, may_go_on)
    watch.close()
    ended.stack = stack.read_text(errors="replace")
    ended.out, ended.err = out.read_bytes(), err.read_bytes().decode("utf-8", "backslashreplace")
    return ended


def _wait(pid: int, begun: float, seconds: float, may_go_on: bool) -> Ended:
    ended = Ended(0, b"", "", 0.0, 0)
    descriptor = os.pidfd_open(pid)
    try:
        while not select.select([descriptor], [], [], 0.25)[0]:
            passed = time.monotonic() - begun
            ended.most = max(ended.most, len(_group(pid)))
            if may_go_on and not ended.interrupted and passed > PATIENCE_S:
                ended.interrupted = True
                os.killpg(pid, signal.SIGINT)  # as a terminal does
            if passed > seconds or ended.most > PROCESSES:
                ended.timed_out = passed > seconds
                break
        ended.seconds = time.monotonic() - begun
        if not ended.timed_out and ended.most <= PROCESSES:
            ended.left_running = _left(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status, used = os.wait4(pid, 0)
    finally:
        os.close(descriptor)
    ended.status = os.waitstatus_to_exitcode(status)
    ended.peak = used.ru_maxrss << 10
    ended.cpu_s = used.ru_utime + used.ru_stime
    return ended


def _left(pid: int) -> int:
    """Processes that outlive the first one by more than a moment."""
    for _ in range(20):
        left = len(_group(pid)) - 1  # the first is still there, as a zombie
        if left <= 0:
            return 0
        time.sleep(0.1)
    return left


def _group(leader: int) -> list[int]:
    """The processes of a group."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if os.getpgid(int(name)) == leader:
                    found.append(int(name))
    return found


def _confine(scratch: Path, out: Path, err: Path, held: int, debug: bool) -> None:
    """Give the fork its folder, its streams, its limits and nothing more."""
    os.setpgid(0, 0)
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND),
        (2, err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND),
    ):
        descriptor = os.open(path, flags, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        open(0, closefd=False),  # noqa: SIM115
        open(1, "w", encoding="utf-8", closefd=False),  # noqa: SIM115
        open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False),  # noqa: SIM115
    )
    os.chdir(scratch / "work")
    os.umask(0o022)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("MAKEMOE_RUN_FOLDER", "LOCAL_RANK", "MAKEMOE_DEBUG", "PYTHONFAULTHANDLER"):
        os.environ.pop(name, None)
    os.environ |= {
        "HOME": str(scratch / "home"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "TMPDIR": str(scratch / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "JSONARGPARSE_DEPRECATION_WARNINGS": "off",
    } | {f"{kind}_proxy": NOWHERE for kind in ("http", "https", "ftp", "all")}
    if debug:
        os.environ["MAKEMOE_DEBUG"] = "1"
    sys.dont_write_bytecode = True
    drop_privileges()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # What is reserved but not written to counts too, as it would on a machine without overcommit;
    # address space alone, of which torch takes much, does not.
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))
    most = _processes_of_user() + PROCESSES
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _gone() -> None:
    """Standard output is a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    _write_to(write)


def _full() -> None:
    """Standard output is on a disk that takes nothing."""
    _write_to(os.open("/dev/full", os.O_WRONLY))


def _write_to(descriptor: int) -> None:
    os.dup2(descriptor, 1)
    os.close(descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _closed() -> None:
    """There is no standard output; Python then says so with None."""
    os.close(1)
    sys.stdout = cast(TextIO, None)


OUTPUTS: dict[str, Callable[[], None]] = {
    "file": lambda: None,
    "full": _full,
    "closed": _closed,
    "gone": _gone,
}
"""What standard output may be, by name."""


def drop_privileges() -> None:
    """Of root, keep the right to read everything: the interpreter may lie where only root reads."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None)
    keep_capabilities, set_dumpable, ambient, raise_one, read_all = 8, 4, 47, 2, 2
    libc.prctl(keep_capabilities, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(OWNER, OWNER, OWNER)
    os.setresuid(OWNER, OWNER, OWNER)
    version_3, bit = 0x20080522, 1 << read_all
    header = (ctypes.c_uint32 * 2)(version_3, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0))
    libc.prctl(ambient, raise_one, read_all, 0, 0)
    libc.prctl(set_dumpable, 1, 0, 0, 0)
    assert not os.access("/", os.W_OK)


def _processes_of_user() -> int:
    """Threads and processes that count against this user's limit now."""
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


def makemoe(argv: list[str]) -> int:
    """The exit status that the console script would give."""
    # Processes that Lightning starts are started like this one.
    sys.argv = [str(Path(sys.executable).parent / "makemoe"), *argv]
    sys.modules["__main__"].__spec__ = None
    from makemoe.cli import main

    try:
        status = main()  # without arguments: signals and streams are its own, too
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        _print_like_python(error)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]  # as Python does: it waits for threads
    atexit._run_exitfuncs()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored: {error}", file=sys.stderr)
        return 120  # as Python does
    return status & 0xFF


def _print_like_python(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)


def _data() -> int:
    """What of this process counts against RLIMIT_DATA, bytes."""
    return _status_of("VmData")


def _status_of(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


def output_of(call: Callable[[], object], path: Path) -> bytes:
    """What a call prints, run in a fork so that it leaves nothing in this process."""
    pid = os.fork()
    if pid == 0:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(descriptor, 1)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            with contextlib.suppress(SystemExit):
                call()
            sys.stdout.flush()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return path.read_bytes()
