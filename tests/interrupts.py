"""Ctrl-C at random moments of a process, and how each ended: `python tests/interrupts.py`."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from commandline import TINY, script
from nursery import MAKEMOE
from scripts import Options, positive

from makemoe.data.corpus import load_text

FIRST_S, LAST_S = 0.001, 10.0
"""Of the moments, whose logarithms are spread evenly: most code runs in the first second."""

PATIENCE_S = 60.0

ENDLESS = {
    "fit": ("fit", *TINY, "--trainer.max_steps=1000000"),
    "predict": ("predict", "--ckpt_path=last", "--max_new_tokens=1000000"),
    "serve": ("serve", "--ckpt_path=last", "--port=0"),
    "inspect": ("inspect", "--ckpt_path=last", "--data.corpus=long.txt"),
    "validate": ("validate", "--ckpt_path=last", "--data.corpus=long.txt"),
}
"""Commands that do not end by themselves within LAST_S."""


class Outcome(NamedTuple):
    """How a process ended that got Ctrl-C.

    Attributes:
        after_s: when it got it.
        took_s: how long it took to end.
        status: as subprocess has it, -2: ended by the signal; None: it did not end.
        err: what it said on standard error.
        left: files half written.
    """

    after_s: float
    took_s: float
    status: int | None
    err: str
    left: list[str]

    @property
    def kind(self) -> str:
        """In a few words; `lost` is what must not be."""
        if self.status == -signal.SIGINT:  # a shell says 130
            # Python's own, before the first line of makemoe's.
            return f"by the signal{', traceback' if 'Traceback' in self.err else ''}"
        if "Fatal Python error: init" in self.err:
            return "in Python's start-up, status 1"
        if self.status != 128 + signal.SIGINT:
            return f"lost: status {self.status}"
        if "Traceback" in self.err:
            return "lost: traceback"
        return "lost: half-written file" if self.left else "130"


def prepare(folder: Path) -> None:
    """Train a tiny model in a folder, and write a text that is long to read with it."""
    ended = script("fit", *TINY, "--run.name=tiny", cwd=folder)
    assert ended.status == 0, ended.err
    (folder / "long.txt").write_text(load_text("sample") * 2000, encoding="utf-8")


def ctrl_c(folder: Path, command: str, after_s: float) -> Outcome:
    """Start an endless command in a prepared folder, interrupt it, and see how it ends.

    The signal goes to all processes of its session, as a terminal's does.
    """
    with tempfile.TemporaryFile("w+") as err, tempfile.TemporaryDirectory() as root:
        arguments = [*ENDLESS[command], *([f"--run.root={root}"] if command == "fit" else [])]
        process = subprocess.Popen(
            [MAKEMOE, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
            # What runs us in the background may have it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        time.sleep(after_s)
        sent = time.monotonic()
        status = process.poll()
        if status is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                status = process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        err.seek(0)
        left = [path.name for path in Path(root).rglob("*.partial")]
        return Outcome(after_s, time.monotonic() - sent, status, err.read(), left)


def table(outcomes: dict[str, list[Outcome]]) -> Iterable[str]:
    """How many ended how, by command, and the longest wait."""
    kinds = sorted({outcome.kind for found in outcomes.values() for outcome in found})
    yield " | ".join(["command", "signals", *kinds, "longest wait"])
    for command, found in outcomes.items():
        counts = Counter(outcome.kind for outcome in found)
        longest = max((outcome.took_s for outcome in found), default=0.0)
        yield " | ".join(
            [command, str(len(found)), *(str(counts[kind]) for kind in kinds), f"{longest:.1f} s"]
        )


def main() -> int:
    """Send them, print the table; 1 if one was lost."""
    parser = Options("interrupts", __doc__)
    add = parser.add_argument
    add("--signals", type=positive, default=100, help="how many (%(default)s)")
    add("--seed", type=int, default=1337, help="another seed, other moments (%(default)s)")
    add("--commands", nargs="+", choices=ENDLESS, default=list(ENDLESS), help="default: all")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    outcomes: dict[str, list[Outcome]] = {command: [] for command in options.commands}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for n in range(options.signals):
            command = options.commands[n % len(options.commands)]
            after_s = FIRST_S * (LAST_S / FIRST_S) ** rng.random()
            outcome = ctrl_c(Path(name), command, after_s)
            outcomes[command].append(outcome)
            if not outcome.kind.startswith("130"):
                print(f"{command} after {after_s:.4f} s: {outcome.kind}", file=sys.stderr)
            if "lost" in outcome.kind:
                print(outcome.err, file=sys.stderr)
    print("\n".join(table(outcomes)))
    return any("lost" in outcome.kind for found in outcomes.values() for outcome in found)


if __name__ == "__main__":
    sys.exit(main())
