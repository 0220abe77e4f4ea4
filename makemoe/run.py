"""Where a run lives: its folder, what is in it, and how it is found again.

checkpoints/<name>/last.ckpt     to resume from
                   best.ckpt     lowest validation loss
                   config.yaml   what the run was started with
                   metrics.csv   every logged figure, one row a step
                   samples.txt   text sampled at each validation
                   pictures/     of the routing, at the last validation
                   events.out... TensorBoard
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from makemoe.errors import CheckpointError, UsageError

FOLDER_VARIABLE = "MAKEMOE_RUN_FOLDER"
"""How the first process tells those it starts where the run lives."""


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


def new_folder(settings: RunSettings, default_name: str) -> Path:
    """A folder for a new run, not made yet; never one that holds a run.

    Raises:
        UsageError: when the name the user gave is taken.
    """
    if told := os.environ.get(FOLDER_VARIABLE):
        return Path(told)
    root = Path(settings.root)
    if settings.name is not None:
        folder = root / settings.name
        if _holds_something(folder):
            raise UsageError(
                f"{folder} holds a run already: resume it with --ckpt_path {folder}/last.ckpt, "
                "or choose another --run.name"
            )
        return folder
    folder, number = root / default_name, 2
    while _holds_something(folder):
        folder, number = root / f"{default_name}-{number}", number + 1
    return folder


def check_place(folder: Path) -> None:
    """Raise the OSError that making `folder` would, without making it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    for is_fit, number in (
        (there.is_dir(), errno.ENOTDIR),
        (os.access(there, os.W_OK), errno.EACCES),
    ):
        if not is_fit:
            raise OSError(number, os.strerror(number), str(folder))


def find_checkpoint(ckpt_path: str, settings: RunSettings, name: str | None = None) -> str:
    """The file `ckpt_path` names; `last` and `best` are those of the newest run.

    Args:
        ckpt_path: a path, `last` or `best`.
        settings: where runs are kept; a name there restricts the search to that run.
        name: otherwise, what the run's name begins with.

    Raises:
        CheckpointError: when there is no such run.
    """
    if ckpt_path not in ("last", "best"):
        return ckpt_path
    pattern = settings.name or "*"
    found = [
        path
        for path in Path(settings.root).glob(f"{pattern}/{ckpt_path}.ckpt")
        if settings.name or name is None or _is_numbered(path.parent.name, name)
    ]
    if not found:
        whose = f"run {settings.name or name} " if settings.name or name else ""
        raise CheckpointError(
            f"--ckpt_path {ckpt_path}: {whose}has left no {ckpt_path}.ckpt under {settings.root}/; "
            "start one: makemoe fit --config configs/quickstart.yaml"
            if whose
            else f"--ckpt_path {ckpt_path}: no run under {settings.root}/ has a {ckpt_path}.ckpt; "
            "start one: makemoe fit --config configs/quickstart.yaml"
        )
    return str(max(found, key=lambda path: path.stat().st_mtime))


def _is_numbered(folder: str, name: str) -> bool:
    """Whether a folder is `name`, or `name` with the number a later run of it got."""
    rest = folder.removeprefix(name)
    return folder.startswith(name) and (not rest or (rest[0] == "-" and rest[1:].isdigit()))


def _holds_something(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
