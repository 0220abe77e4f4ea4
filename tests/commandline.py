"""Ways to run the command line, and to look at what it did."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

from nursery import MAKEMOE, Forked

TINY = (
    "--model.n_layer=1",
    "--model.n_embd=16",
    "--model.n_head=2",
    "--model.block_size=16",
    "--model.num_experts=3",
    "--data.batch_size=8",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=20",
    "--trainer.val_check_interval=10",
    "--trainer.log_every_n_steps=5",
    "--run.sample_tokens=8",
    "--run.pictures=false",
)


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that tells of an error; nothing else was said of it."""
        *before, line = self.err.splitlines()
        assert line.startswith("makemoe: error: "), self.err
        assert "Traceback" not in self.err
        assert not any("error" in other.lower() for other in before), self.err
        return line.removeprefix("makemoe: error: ")


def script(
    *arguments: str,
    cwd: Path,
    stdout: IO[str] | None = None,
    preexec_fn: Callable[[], object] | None = None,
) -> Ended:
    """What the console script does, in a process of its own; its output may go to a file."""
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    (out, to_out), (err, to_err) = os.pipe(), os.pipe()
    output = to_out if stdout is None else stdout
    process = Forked([MAKEMOE, *arguments], cwd, variables, output, to_err, preexec_fn=preexec_fn)
    os.close(to_out)
    os.close(to_err)
    with open(out) as out_file, open(err) as err_file, ThreadPoolExecutor(2) as readers:
        told = [readers.submit(file.read) for file in (out_file, err_file)]
        try:
            return Ended(process.wait(timeout=300), told[0].result(), told[1].result())
        finally:
            process.kill()


def imports(*arguments: str, cwd: Path) -> tuple[int, set[str]]:
    """The exit status of a command, and the packages that it imported."""
    code = (
        "import sys; from makemoe.cli import main; "
        f"status = main({list(arguments)!r}); "
        "print(status, *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    )
    status, *packages = done.stderr.splitlines()[-1].split()
    return int(status), set(packages)


def little_space(most: int = 50_000) -> None:
    """Of a process: no file may grow past that, by default less than a checkpoint or a picture."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def obeying() -> None:
    """Of a process: root too may write only where the folder's mode says so."""
    override = 1  # CAP_DAC_OVERRIDE
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3
    held = (ctypes.c_uint32 * 6)()
    libc.capget(header, held)
    held[0] &= ~(1 << override)  # of those in effect
    libc.capset(header, held)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"a folder"
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def refused(call: Callable[..., Ended], status: int, words: list[str], *arguments: str) -> None:
    """Assert that a command ends in one line that holds `words`, and leaves nothing behind."""
    before = listing(Path())
    ended = call(*arguments)
    assert ended.status == status, ended
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.out == ""
    for word in words:
        assert word in ended.error
    assert listing(Path()) == before
