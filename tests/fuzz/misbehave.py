"""Commands that misbehave, judged as makemoe is; run by test_harness.py."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402

from fuzz import child, folder  # noqa: E402
from fuzz.case import Case  # noqa: E402
from fuzz.judge import judge  # noqa: E402

PREFIX = "makemoe: error: "


def say(*lines: str, status: int = 1) -> Callable[[list[str]], int]:
    """A command that prints lines to standard error."""

    def command(argv: list[str]) -> int:
        for line in lines:
            print(line, file=sys.stderr)
        return status

    return command


def do(action: Callable[[], object], status: int = 0) -> Callable[[list[str]], int]:
    """A command that does something; if it fails, with one line."""

    def command(argv: list[str]) -> int:
        try:
            action()
        except (MemoryError, OSError, RuntimeError) as error:
            print(f"Traceback (most recent call last):\n{error}", file=sys.stderr)
            return 1
        if status:
            print(PREFIX + "x", file=sys.stderr)
        return status

    return command


def wait() -> None:
    time.sleep(60)


def spin() -> None:
    while True:
        pass


def interrupted(argv: list[str]) -> int:
    try:
        wait()
    except KeyboardInterrupt:
        return 130
    return 0


def stubborn() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wait()


def fork_many() -> None:
    for _ in range(40):
        fork_one()


def fork_one() -> None:
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)


def write(name: str) -> Callable[[], None]:
    def action() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")

    return action


def begin_run() -> None:
    for name in ("config.yaml", "metrics.csv"):
        write(f"checkpoints/new/{name}")()


def torn_run() -> None:
    begin_run()
    write("checkpoints/new/last.ckpt")()


def refused_everywhere() -> None:
    """Of root, only the right to read is left."""
    assert not any(os.access(path, os.W_OK) for path in ("/", "/etc/passwd", sys.executable))
    assert subprocess.run([sys.executable, "-c", "import json"], check=False).returncode == 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "does well": do(lambda: torch.zeros(1000)),
    "says what is wrong": say("a warning", PREFIX + "x"),
    "goes on until interrupted": interrupted,
    "a hang": do(wait),
    "a busy hang": do(spin),
    "a hang that ignores Ctrl-C": do(stubborn),
    "a memory error": do(lambda: bytearray(3 << 30)),
    "a reservation": do(lambda: torch.empty(3 << 30, dtype=torch.uint8)),
    "large tensors": do(lambda: [torch.empty(1 << 26) for _ in range(12)]),
    "a crash": do(lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    "a kill": do(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "many processes": do(fork_many),
    "a process left": do(fork_one),
    "a traceback": say("Traceback (most recent call last):", "ValueError: x"),
    "a bug reported": say(PREFIX + "this is a bug in makemoe 0.1.0"),
    "silence": say(),
    "an error without its prefix": say("something is wrong"),
    "two errors": say(PREFIX + "x", PREFIX + "x"),
    "an error, then more": say(PREFIX + "x", "more"),
    "an error, then success": say(PREFIX + "x", status=0),
    "a long error": say(PREFIX + "x" * 500),
    "an escape sequence": say(PREFIX + "\x1b[31m"),
    "an unknown status": say(status=7),
    "unhealthy predict": say(status=3),
    "a marker": do(write("PWNED")),
    "an import": do(write("PWNED_BY_IMPORT")),
    "a leftover": do(write("x"), 1),
    "a leftover folder": do(lambda: Path("x").mkdir(), 2),
    "a partial file": do(write(".x.partial"), 1),
    "an unasked file": do(write("x")),
    "a changed file": do(write("text.txt"), 1),
    "a lost file": do(lambda: Path("text.txt").unlink()),
    "a fit's own folder": do(begin_run, 1),
    "a fit's torn checkpoint": do(torn_run, 1),
    "another run's file": do(write("checkpoints/tiny/last.txt")),
    "a root that writes anywhere": do(refused_everywhere),
}


def main() -> None:
    """Print the violations of each as JSON."""
    scratch = Path(tempfile.mkdtemp())
    scratch.chmod(0o755)
    prepared, work = scratch / "prepared", scratch / "work"
    folder.plain_files(prepared)
    write_in = prepared / "checkpoints" / "tiny"
    write_in.mkdir(parents=True)
    (write_in / "last.txt").write_text("kept")
    found = {}
    child.PATIENCE_S = 0.3
    for name, call in COMMANDS.items():
        command = "fit" if "fit" in name or "run's" in name else "predict"
        case = Case("bytes", [command])
        folder.fresh(prepared, work)
        for other in ("home", "cache", "tmp"):
            (scratch / other).mkdir(exist_ok=True)
        folder.hand_over(scratch)
        before = folder.snapshot(work)
        goes_on = "interrupted" in name or "Ctrl-C" in name
        seconds = 1.0 if "hang" in name else child.SECONDS
        ended = child.run(case.argv, scratch, may_go_on=goes_on, seconds=seconds, call=call)
        found[name] = judge(case, ended, work, before, folder.snapshot(work))
    print(json.dumps(found))
    folder.remove(scratch)


if __name__ == "__main__":
    main()
