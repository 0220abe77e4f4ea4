"""Where runs are stored: the files in a run's folder, which runs exist, and how to find one again.

checkpoints/<name>/last.ckpt     to resume from
                   best.ckpt     lowest validation loss
                   config.yaml   the settings the run was started with
                   metrics.csv   every logged metric, one row per step
                   samples.txt   text sampled at each validation
                   pictures/     of the routing, at the last validation
                   events.out... TensorBoard
                   .lock         while a process trains the run
                   .job          which job of torchrun or SLURM began it
"""

import csv
import math
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from makemoe.errors import CheckpointError, UsageError, setting
from makemoe.files import open_regular, read_whole

FOLDER_VARIABLE = "MAKEMOE_RUN_FOLDER"
"""Environment variable that passes the run's folder to the processes that the first one starts."""

CHECKPOINT_VARIABLE = "MAKEMOE_CHECKPOINT"
"""Environment variable that passes the process's id and the file that `last` means to the processes
it starts: by then, another run may be the newest."""

LOCK = ".lock"
JOB = ".job"
"""File in a run's folder with the job that began it, so that a restarted job finds its run."""

KEPT = ("config.yaml", "metrics.csv", "last.ckpt", "best.ckpt")
"""A folder with any of these files is a run; the newest of them tells when the run last wrote."""

LONGEST_LINE = 64 << 20
"""Maximum length of a line of metrics.csv, in bytes; one of a million columns is shorter."""


@dataclass
class RunSettings:
    """Where a run is stored and how often it is saved.

    Args:
        root: folder of all runs.
        name: the run's folder in it; null: the config file's name, with a number if it is taken.
        save_every_n_steps: optimizer steps between two writes of last.ckpt.
        sample_prompt: start of the text sampled at each validation; null: a newline, or what
            the tokenizer begins a text with.
        sample_tokens: length of that text, in tokens; 0: none.
        pictures: draw the routing at each validation; needs the extra `plots`.
    """

    root: str = "checkpoints"
    name: str | None = None
    save_every_n_steps: int = 500
    sample_prompt: str | None = None
    sample_tokens: int = 300
    pictures: bool = True

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if self.save_every_n_steps < 1:
            raise UsageError(
                f"save_every_n_steps {self.save_every_n_steps} is too small: use 1 or more"
            )
        if self.sample_tokens < 0:
            raise UsageError(
                f"sample_tokens {self.sample_tokens} is negative: use 0 for no samples"
            )
        if self.sample_prompt == "":
            raise UsageError("sample_prompt is empty: omit it to start with a newline")
        if self.name is not None and (self.name in ("", "..") or Path(self.name).name != self.name):
            raise UsageError(
                f"run name {self.name!r} is not a folder name: use --run.root for its parent"
            )
        if "\0" in self.root + (self.name or ""):
            raise UsageError("run root or name contains a NUL character, which file names cannot")


class Run(NamedTuple):
    """An existing run.

    Attributes:
        folder: where it is stored.
        written: when it last wrote its settings, metrics or checkpoints, in seconds since 1970.
    """

    folder: Path
    written: float

    @property
    def name(self) -> str:
        return self.folder.name

    def has(self, what: str) -> bool:
        """Whether it has the checkpoint `last` or `best`."""
        return os.path.isfile(self.folder / f"{what}.ckpt")


def runs_in(root: str | os.PathLike[str]) -> list[Run]:
    """The runs in a folder, newest first; none if the folder does not exist."""
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return []
    runs = []
    for folder in (Path(root) / name for name in names):
        times = [time for file in KEPT if (time := _written(folder / file)) is not None]
        if times:
            runs.append(Run(folder, max(times)))
    return sorted(runs, key=lambda run: run.written, reverse=True)


def logged_losses(folder: Path, name: str = "val_loss") -> Iterator[tuple[int, float]]:
    """Yield step and loss (NaN: none) of each readable row of a run's metrics.csv.

    Args:
        folder: of the run.
        name: the column; the validation loss in nats per token, or another one.
    """
    try:
        with open_regular(folder / "metrics.csv") as file:
            lines = (
                line.decode(errors="replace").replace("\0", "").removeprefix("\ufeff")
                for line in iter(lambda: file.readline(LONGEST_LINE), b"")
            )
            rows = csv.DictReader(lines)
            for row in rows:
                step, loss = row.get("step") or "", row.get(name) or "nan"
                if step.isascii() and step.isdigit() and len(step) < 19:
                    yield int(step), _number(loss)
    except (OSError, csv.Error):
        return


def run_of(job: str, root: str | os.PathLike[str]) -> Path | None:
    """The folder of the newest run in `root` that a job began; None if there is none."""
    try:
        folders = [Path(root) / name for name in os.listdir(root)]
    except OSError:
        return None
    own = [folder for folder in folders if _said(folder / JOB) == job]
    return max(own, key=lambda folder: folder.stat().st_mtime, default=None)


def find_checkpoint(ckpt_path: str, settings: RunSettings, name: str | None = None) -> str:
    """The file that `ckpt_path` names.

    Args:
        ckpt_path: a path; `last` or `best` of the newest run; or the name of a run, for its
            last.ckpt. A file takes precedence over a run with the same name.
        settings: where runs are stored; if it has a name, `last` and `best` are those of that run.
        name: otherwise, the run's name without its number; None: any run.

    Raises:
        CheckpointError: if there is no such run, or it has no such file.
    """
    parent, _, told = os.environ.get(CHECKPOINT_VARIABLE, "").partition(":")
    if parent == str(os.getppid()) and os.environ.get("LOCAL_RANK", "0") != "0":
        return told
    found = checkpoint_named(ckpt_path, settings, name)
    if found != ckpt_path:
        os.environ[CHECKPOINT_VARIABLE] = f"{os.getpid()}:{found}"
    return found


def checkpoint_named(ckpt_path: str, settings: RunSettings, name: str | None = None) -> str:
    """`find_checkpoint` for this process alone: the processes it starts are told nothing."""
    if ckpt_path in ("last", "best"):
        return _of_the_newest(ckpt_path, settings, name)
    if _can_be_a_run(ckpt_path):
        return _of_the_named(ckpt_path, runs_in(settings.root), settings.root)
    return ckpt_path


def tell_checkpoint(path: str, step: int | None = None) -> None:
    """Print on standard error which file is used, and its step if known."""
    of_step = "" if step is None else f" (step {step})"
    print(f"makemoe: using {path}{of_step}", file=sys.stderr)


def _of_the_newest(what: str, settings: RunSettings, name: str | None) -> str:
    """The file `last` or `best` of the newest run that matches."""
    root, only = settings.root, settings.name
    runs = [
        run
        for run in runs_in(root)
        if (run.name == only if only else name is None or _is_numbered(run.name, name))
    ]
    asked = setting("ckpt_path", what)
    if not runs:
        whose = f"no run {only or name} in {root}/" if only or name else f"no run in {root}/"
        start = "start a run: makemoe fit --config quickstart"
        raise CheckpointError(f"{asked}: {whose}; {_in_the_default_root(root, what) or start}")
    newest = runs[0]
    if newest.has(what):
        return str(newest.folder / f"{what}.ckpt")
    which = "the run" if only else "the newest run"
    other = "last" if what == "best" else "best"
    older = next((str(run.folder / f"{what}.ckpt") for run in runs if run.has(what)), None)
    mends = [other] * newest.has(other) + ([older] if older else [])
    mend = " or ".join(setting("ckpt_path", mend) for mend in mends)
    raise CheckpointError(
        f"{asked}: {which}, {newest.folder}, has no {what}.ckpt; "
        + (f"choose {mend}" if mend else "wait until it saves one, or name a file")
    )


def _of_the_named(name: str, runs: Sequence[Run], root: str) -> str:
    """The file last.ckpt of the run with that name."""
    run = next((run for run in runs if run.name == name), None)
    if run is None:
        if os.path.isdir(name):
            return name  # a folder; reading it reports that
        near = get_close_matches(name, [run.name for run in runs], n=1)
        mend = f"did you mean {near[0]}?" if near else "see makemoe runs"
        mend = _in_the_default_root(root, "last", name) or mend
        raise CheckpointError(
            f"{setting('ckpt_path', name)}: no such file and no such run in {root}/; {mend}"
        )
    if run.has("last"):
        return str(run.folder / "last.ckpt")
    best = setting("ckpt_path", str(run.folder / "best.ckpt"))
    mend = f"choose {best}" if run.has("best") else "wait until it saves one"
    asked = setting("ckpt_path", name)
    raise CheckpointError(f"{asked}: the run {run.folder} has no last.ckpt; {mend}")


def _in_the_default_root(root: str, what: str, name: str | None = None) -> str:
    """How to name a run in the default root, if the user's root is another one; empty if none."""
    runs = runs_in(RunSettings.root) if root != RunSettings.root else []
    found = next((run for run in runs if name in (None, run.name) and run.has(what)), None)
    return f"did you mean {setting('ckpt_path', f'{found.folder / what}.ckpt')}?" if found else ""


def _can_be_a_run(ckpt_path: str) -> bool:
    """Whether it is a plain name and not a file."""
    is_word = bool(ckpt_path) and Path(ckpt_path).name == ckpt_path
    is_file = os.path.exists(ckpt_path) and not os.path.isdir(ckpt_path)
    return is_word and not is_file and not ckpt_path.endswith(".ckpt")


def _is_numbered(folder: str, name: str) -> bool:
    """Whether a folder is `name`, or `name` with the number of a later run."""
    rest = folder.removeprefix(name)
    return folder.startswith(name) and (not rest or (rest[0] == "-" and rest[1:].isdigit()))


def _written(file: Path) -> float | None:
    """When a regular file was last written; None if there is none."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime if stat.S_ISREG(status.st_mode) else None


def _said(file: Path) -> str | None:
    """The text of a short file; None if there is none."""
    try:
        return read_whole(file, LONGEST_LINE).decode(errors="replace")
    except (OSError, ValueError):
        return None


def _number(text: str) -> float:
    """A number, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
