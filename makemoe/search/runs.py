"""One run of a comparison: a process of `makemoe fit` with a folder of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from makemoe.errors import UsageError
from makemoe.files import remove_partial
from makemoe.locks import is_held
from makemoe.run import CHECKPOINT_VARIABLE, FOLDER_VARIABLE, LOCK
from makemoe.search.folder import digest, read_json, write_json
from makemoe.search.plan import Variant

COMMAND = (sys.executable, "-m", "makemoe")

QUIET = ("--run.pictures=false", "--run.sample_tokens=0")
"""Without what takes time at every validation, unless the user asks for it."""

LOG_END = 1 << 16
"""How much of a log's end is searched for an error, in bytes."""

ERROR = "makemoe: error: "


class ConfigChanged(UsageError):
    """A config is not what it was when the runs were planned."""


def check_unchanged(configs: Mapping[str, str]) -> None:
    """Raise ConfigChanged if a file has not the digest it had."""
    for path, known in configs.items():
        if digest(Path(path)) != known:
            raise ConfigChanged(
                f"{path} has changed while the runs were trained: change it back and give the same "
                "command again, or begin with another --run.name"
            )


class Run:
    """A variant trained with one seed.

    Args:
        folder: folder of the comparison.
        variant: what is trained.
        seed: seed of weights, batches, dropout and noise.

    Attributes:
        seconds: how long it has been trained, in this process and before.
        starts: how often its process was started. After a second time, `seconds` has the time of
            two starts, and of steps that were lost and repeated.
        status: `new`, `stopped` (half done), `finished` or `failed`.
        why: why it failed.
    """

    def __init__(self, folder: Path, variant: Variant, seed: int) -> None:
        self.variant, self.seed = variant, seed
        self.root = folder / variant.folder
        self.folder = self.root / f"seed-{seed}"
        self._record = self.root / f"seed-{seed}.json"
        self._log = self.root / f"seed-{seed}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._before = 0.0
        self._log_begins = 0
        self._asked = False
        # Without its folder, a run is trained again.
        kept = read_json(self._record) if self.folder.is_dir() else {}
        self.seconds = kept.get("seconds", 0.0)
        # Records of earlier versions do not say it.
        self.starts: int = kept.get("starts", 1 if kept else 0)
        self.status = kept.get("status", "new")
        self.why: str = kept.get("why", "")

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return bool(self.status == "finished")

    @property
    def has_ended(self) -> bool:
        """Whether it has finished or failed."""
        return self.status in ("finished", "failed")

    @property
    def is_taken(self) -> bool:
        """Whether another process trains it: one that a killed comparison has left."""
        return is_held(self.folder / LOCK)

    def words(self) -> list[str]:
        """The command line of its `makemoe fit`, resumed if it is half done."""
        last = self.folder / "last.ckpt"
        return [
            "fit",
            *QUIET,
            *self.variant.words,
            f"--seed={self.seed}",
            f"--run.root={self.root}",
            f"--run.name={self.folder.name}",
            *([f"--ckpt_path={last}"] if last.exists() else []),
        ]

    def start(self, environment: Mapping[str, str]) -> None:
        """Start its process, which ends if this one does.

        Raises:
            ConfigChanged: if a config has changed since the variants were looked at.
        """
        check_unchanged(self.variant.configs)
        self.root.mkdir(exist_ok=True)
        remove_partial(self.root)
        if self.folder.exists() and not (self.folder / "last.ckpt").exists():
            shutil.rmtree(self.folder)  # killed before its first checkpoint: nothing to go on from
        others = (FOLDER_VARIABLE, CHECKPOINT_VARIABLE)  # of this process
        own = {name: value for name, value in environment.items() if name not in others}
        self._asked = False
        self.starts += 1
        self._began, self._before = time.monotonic(), self.seconds
        with self._log.open("ab") as log:
            self._log_begins = log.tell()
            self._process = subprocess.Popen(
                [*COMMAND, *self.words()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=own,
                # A terminal's Ctrl-C comes to this process alone, which passes it on once.
                start_new_session=True,
            )
        self.note()

    def poll(self, asked: bool) -> bool:
        """Whether its process has ended; if so, how is kept.

        Args:
            asked: whether it was asked to stop.
        """
        assert self._process is not None
        self.seconds = self._before + time.monotonic() - self._began
        status = self._process.poll()
        if status is None:
            return False
        if status == 0:
            self._keep("finished")
        elif asked:
            self._keep("stopped")
        else:
            self._keep("failed", self._reason(status))
        return True

    def note(self) -> None:
        """Keep how long it has been trained, in case this process is killed."""
        self._keep("stopped")

    def stop(self) -> None:
        """Ask its process to save and end; once, because a second request would not wait."""
        assert self._process is not None
        if not self._asked and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._asked = True

    def _keep(self, status: str, why: str = "") -> None:
        self.status, self.why = status, why
        seconds = round(self.seconds, 1)
        kept = {"status": status, "seconds": seconds, "starts": self.starts, "why": why}
        write_json(self._record, kept)

    def _reason(self, status: int) -> str:
        """Why its process failed, in its own words."""
        with self._log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_begins, end - LOG_END))
            lines = log.read().decode(errors="replace").replace("\r", "\n").splitlines()
        told = [line for line in lines if line.startswith(ERROR)]
        if told:
            return told[-1].removeprefix(ERROR)
        number = -status if status < 0 else status - 128
        if number in set(signal.Signals):
            return f"ended by {signal.Signals(number).name}; see {self._log}"
        return f"exit status {status}; see {self._log}"
