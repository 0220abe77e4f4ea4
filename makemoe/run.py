"""Where runs live: what a run's folder holds, which runs there are, and how one is found again.

checkpoints/<name>/last.ckpt     to resume from
                   best.ckpt     lowest validation loss
                   config.yaml   what the run was started with
                   metrics.csv   every logged figure, one row a step
                   samples.txt   text sampled at each validation
                   pictures/     of the routing, at the last validation
                   events.out... TensorBoard
                   .lock         while a process trains it
"""

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from makemoe.errors import CheckpointError, UsageError

FOLDER_VARIABLE = "MAKEMOE_RUN_FOLDER"
"""How the first process tells those it starts where the run lives."""

CHECKPOINT_VARIABLE = "MAKEMOE_CHECKPOINT"
"""How a process, named by its id, tells those it starts which file `last` is: later, another run
may be the newest."""

LOCK = ".lock"
KEPT = ("config.yaml", "metrics.csv", "last.ckpt", "best.ckpt")
"""What makes a folder a run; the newest of them is when the run last wrote."""


@dataclass
class RunSettings:
    """Where a run is kept and how often it is saved.

    Args:
        root: folder of all runs.
        name: the run's folder in it; null: the config file's name, numbered when taken.
        save_every_n_steps: optimizer steps between two writes of last.ckpt.
        sample_prompt: what the text sampled at each validation begins with; null: a newline.
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
        """Refuse settings that cannot be."""
        if self.save_every_n_steps < 1:
            raise UsageError(
                f"save_every_n_steps {self.save_every_n_steps} is not positive: give 1 or more"
            )
        if self.sample_tokens < 0:
            raise UsageError(f"sample_tokens {self.sample_tokens} is negative: 0 samples nothing")
        if self.sample_prompt == "":
            raise UsageError("sample_prompt is empty: leave it out to begin at a newline")
        if self.name is not None and (self.name in ("", "..") or Path(self.name).name != self.name):
            raise UsageError(f"run name {self.name!r} is not one folder's name: see --run.root")
        if "\0" in self.root + (self.name or ""):
            raise UsageError("run root or name holds a NUL character, which no file's name can")


class Run(NamedTuple):
    """A run that is there.

    Attributes:
        folder: where.
        written: when it last wrote its settings, figures or checkpoints, in seconds since 1970.
    """

    folder: Path
    written: float

    @property
    def name(self) -> str:
        return self.folder.name

    def has(self, what: str) -> bool:
        """Whether it has kept `last` or `best`."""
        return os.path.isfile(self.folder / f"{what}.ckpt")


def runs_in(root: str | os.PathLike[str]) -> list[Run]:
    """The runs in a folder, the newest first; none where there is no such folder."""
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


def find_checkpoint(ckpt_path: str, settings: RunSettings, name: str | None = None) -> str:
    """The file that `ckpt_path` names.

    Args:
        ckpt_path: a path; `last` or `best`, which are of the newest run; or a run's name, for its
            last.ckpt. A file of that name comes before a run.
        settings: where runs are kept; a name there restricts `last` and `best` to that run.
        name: otherwise, what the run's name begins with.

    Raises:
        CheckpointError: when there is no such run, or it has no such file.
    """
    process, _, told = os.environ.get(CHECKPOINT_VARIABLE, "").partition(":")
    if process == str(os.getppid()) and os.environ.get("LOCAL_RANK", "0") != "0":
        return told
    if ckpt_path in ("last", "best"):
        found = _of_the_newest(ckpt_path, settings, name)
    elif _can_be_a_run(ckpt_path):
        found = _of_the_named(ckpt_path, runs_in(settings.root), settings.root)
    else:
        return ckpt_path
    os.environ[CHECKPOINT_VARIABLE] = f"{os.getpid()}:{found}"
    return found


def tell_checkpoint(path: str, step: int | None = None) -> None:
    """Say on standard error which file is used, and of which step if that is known."""
    of_step = "" if step is None else f" (step {step})"
    print(f"makemoe: using {path}{of_step}", file=sys.stderr)


def is_first_process() -> bool:
    """Whether no other process of the same run has started this one, or decides for it."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def _of_the_newest(what: str, settings: RunSettings, name: str | None) -> str:
    """The file `last` or `best` of the newest run that is asked for."""
    root, only = settings.root, settings.name
    runs = [
        run
        for run in runs_in(root)
        if (run.name == only if only else name is None or _is_numbered(run.name, name))
    ]
    asked = f"--ckpt_path {what}"
    if not runs:
        whose = f"no run {only or name} in {root}/" if only or name else f"no run in {root}/"
        start = "start a run: makemoe fit --config configs/quickstart.yaml"
        raise CheckpointError(f"{asked}: {whose}; {_in_the_default_root(root, what) or start}")
    newest = runs[0]
    if newest.has(what):
        return str(newest.folder / f"{what}.ckpt")
    which = "the run" if only else "the newest run"
    other = "last" if what == "best" else "best"
    older = next((str(run.folder / f"{what}.ckpt") for run in runs if run.has(what)), None)
    mends = [other] * newest.has(other) + ([older] if older else [])
    mend = " or ".join(f"--ckpt_path {mend}" for mend in mends)
    raise CheckpointError(
        f"{asked}: {which}, {newest.folder}, has no {what}.ckpt; "
        + (f"choose {mend}" if mend else "wait until it saves one, or name a file")
    )


def _of_the_named(name: str, runs: Sequence[Run], root: str) -> str:
    """The file last.ckpt of the run of that name."""
    run = next((run for run in runs if run.name == name), None)
    if run is None:
        if os.path.isdir(name):
            return name  # a folder; whoever reads it says so
        near = get_close_matches(name, [run.name for run in runs], n=1)
        mend = f"did you mean {near[0]}?" if near else "see makemoe runs"
        mend = _in_the_default_root(root, "last", name) or mend
        raise CheckpointError(
            f"--ckpt_path {name}: no such file and no such run in {root}/; {mend}"
        )
    if run.has("last"):
        return str(run.folder / "last.ckpt")
    mend = f"choose {run.folder / 'best.ckpt'}" if run.has("best") else "wait until it saves one"
    raise CheckpointError(f"--ckpt_path {name}: the run {run.folder} has no last.ckpt; {mend}")


def _in_the_default_root(root: str, what: str, name: str | None = None) -> str:
    """How to name a run that another root than the user's holds; empty where it holds none."""
    runs = runs_in(RunSettings.root) if root != RunSettings.root else []
    found = next((run for run in runs if name in (None, run.name) and run.has(what)), None)
    return f"did you mean --ckpt_path {found.folder / what}.ckpt?" if found else ""


def _can_be_a_run(ckpt_path: str) -> bool:
    """Whether it is one word, and no file."""
    is_word = bool(ckpt_path) and Path(ckpt_path).name == ckpt_path
    is_file = os.path.exists(ckpt_path) and not os.path.isdir(ckpt_path)
    return is_word and not is_file and not ckpt_path.endswith(".ckpt")


def _is_numbered(folder: str, name: str) -> bool:
    """Whether a folder is `name`, or `name` with the number a later run of it got."""
    rest = folder.removeprefix(name)
    return folder.startswith(name) and (not rest or (rest[0] == "-" and rest[1:].isdigit()))


def _written(file: Path) -> float | None:
    """When a regular file was written."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime if stat.S_ISREG(status.st_mode) else None
