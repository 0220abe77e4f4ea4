"""The folder of a sweep: which study its trials belong to, and which of its workers live.

checkpoints/<name>/study.db          the trials, unless --storage names another database
                   study.json        which study that is
                   sweep.json        what came of it: the data of the table and of the picture
                   sweep.png         the trials and what the options explain
                   best.yaml         the best trial as a config
                   timed.json        the config with the time a run takes
                   workers/          a file per worker, locked while it lives
                   trial-NNNN/seed-N      a run
"""

import platform
from pathlib import Path

from makemoe.errors import UsageError
from makemoe.locks import Lock, is_held
from makemoe.search.folder import read_json, write_json
from makemoe.search.study import Trials

STUDY, RESULTS, PICTURE, BEST = "study.db", "sweep.json", "sweep.png", "best.yaml"
TIMED, WORKERS, OF_STUDY = "timed.json", "workers", "study.json"


def check_folder(folder: Path) -> None:
    """Raise UsageError if a folder holds something else than a sweep."""
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if held and not held & {WORKERS, STUDY, RESULTS}:
        raise UsageError(f"{folder} already exists, and is no sweep: give another --run.name")


def claim(folder: Path, trials: Trials) -> None:
    """Let a folder belong to a study; its runs would be taken for those of another one.

    Raises:
        UsageError: if it belongs to another study.
    """
    known = read_json(folder / OF_STUDY).get("id")
    if known is None:  # a new folder, or one of an earlier version
        write_json(folder / OF_STUDY, {"id": trials.ids()[0]})
    elif known not in trials.ids():
        raise UsageError(
            f"{folder} holds the runs of a study that is not in this database: give its --storage "
            "again, or another --run.name"
        )


class Alive:
    """A file in the folder that tells the other workers of this machine that this one lives.

    Args:
        folder: of the sweep.
        worker: the name of this worker.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self._lock = Lock(file_of(folder, worker))

    def __enter__(self) -> "Alive":
        self._lock.take()
        if not self._lock.enforced:
            self._lock.release(remove=True)  # nobody could see that it is held
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release(remove=True)


def lives(folder: Path, worker: str) -> bool | None:
    """Whether a worker lives; None if it is of another machine, or the file system has no locks."""
    path = file_of(folder, worker)
    return is_held(path) if path.exists() else None


def file_of(folder: Path, worker: str) -> Path:
    """The file of a worker of this machine: a lock may not be seen on another one."""
    return folder / WORKERS / f"{platform.node()}-{worker}"
