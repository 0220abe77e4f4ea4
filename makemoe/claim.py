"""The folder a run writes to: claimed by the run's first process and locked while it trains.

Two processes that start together never share a folder, and only one process trains a run at a time.
"""

import os
import shlex
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from itertools import chain, count
from pathlib import Path
from types import TracebackType

from makemoe import process
from makemoe.errors import DISK_FAULTS, CheckpointError, UsageError, WriteError
from makemoe.files import is_partial, remove_partial, replacing
from makemoe.locks import Lock
from makemoe.run import FOLDER_VARIABLE, JOB, KEPT, LOCK, RunSettings

PATIENCE_S = 0.25
"""How long to wait for a lock that `makemoe runs` may be checking, in seconds."""

ATTEMPTS = 10
"""How often to create a folder again if another process has just removed it."""


class OwnFolder(AbstractContextManager["OwnFolder"]):
    """The folder of the run that this process trains; unlocked when the block ends.

    If the run has written nothing there, the folder is removed, with the parents it had to create.

    Attributes:
        path: the folder; None until it is taken, and if nothing is trained.
        job: what trains the run, if it may be started again; the folder keeps it.
        again: the folder that the job had taken before it was started again.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.job = ""
        self.again: Path | None = None
        self._checkpoint: Path | None = None
        self._lock: Lock | None = None
        self._made: list[Path] = []
        self._process = os.getpid()

    def take(
        self,
        run: RunSettings,
        default_name: str,
        checkpoint: Path | None = None,
        root_is_given: bool = False,
    ) -> Path:
        """Take the folder that a fit writes to, and pass it to the processes this one starts.

        A new run gets an empty folder. A resumed run continues in its own folder, unless the user
        names another run or root, or the checkpoint is a guest among the files of a run.

        Args:
            run: where runs are stored, and the name if the user gave one.
            default_name: the name otherwise, with a number if it is taken.
            checkpoint: the checkpoint the run is resumed from.
            root_is_given: whether the user set `run.root`.

        Raises:
            UsageError: if the name the user gave is taken.
            CheckpointError: if another process is training the run to be resumed.
            WriteError: if nothing can be written there.
        """
        if told := os.environ.get(FOLDER_VARIABLE):
            self.path = Path(told)
            return self.path
        self._checkpoint = checkpoint
        root, name = Path(run.root), run.name or default_name
        is_guest = checkpoint is not None and _is_guest(checkpoint)
        if checkpoint is not None and run.name is None:
            name = checkpoint.stem if is_guest else checkpoint.parent.resolve().name
        self.path = root / name
        resumes = checkpoint is not None and (
            (run.name is None and not root_is_given and not is_guest)
            or (not (is_guest and run.name is None) and _same(self.path, checkpoint.parent))
        )
        if checkpoint is not None and resumes:
            self.path = checkpoint.parent
        elif self.again is not None:  # which has no checkpoint yet
            self.path, resumes = self.again, True
        if not process.is_first():
            return self.path  # this process writes nothing; the first one broadcasts the real path
        try:
            if resumes:
                self._take_again(self.path)
            else:
                numbered = (root / f"{name}-{number}" for number in count(2))
                self._take_new([self.path] if run.name else chain([self.path], numbered))
            if self.job:
                with replacing(self.path / JOB) as file:
                    file.write(self.job.encode())
        except OSError as error:
            raise WriteError(f"in the folder {self.path}", error) from error
        os.environ[FOLDER_VARIABLE] = str(self.path)
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the folder; add a fix to the error if a write failed.

        Raises:
            CheckpointError: in place of a WriteError, or of an OSError in the folder.
        """
        self.release()
        if isinstance(error, OSError) and error.errno in DISK_FAULTS and self._is_inside(error):
            error = WriteError(error.filename or "to the disk", error)
        if isinstance(error, WriteError):
            raise CheckpointError(f"{error}; {self._mend(error)}") from error

    def _take_again(self, folder: Path) -> None:
        """Take the folder of an existing run."""
        lock = Lock(folder / LOCK)
        if not lock.take(PATIENCE_S):
            raise CheckpointError(
                f"run {folder.resolve().name} is being trained by another process: wait until "
                f"it ends, or continue {self._checkpoint} as a new run with --run.name NEW"
            )
        self._lock = lock
        remove_partial(folder)

    def _take_new(self, folders: Iterable[Path]) -> None:
        """Take the first folder that is empty and that no other process takes."""
        for folder in folders:
            self.path = folder
            if self._got(folder):
                return
        last = folder / "last.ckpt"
        resume = (
            f"resume it with --ckpt_path {shlex.quote(str(last))}, or "
            if os.path.exists(last)
            else ""
        )
        raise UsageError(f"{folder} already exists: {resume}choose another --run.name")

    def _got(self, folder: Path) -> bool:
        """Whether this process could take the folder."""
        for _ in range(ATTEMPTS):
            try:
                return self._try(folder)
            except FileNotFoundError as error:
                vanished = error  # a parent: another process has removed a folder it had created
        raise vanished

    def _try(self, folder: Path) -> bool:
        if _holds_something(folder):
            return False
        made_before = len(self._made)
        self._make(folder)
        lock = Lock(folder / LOCK)
        if lock.take():
            # Without flock, the folder belongs to the process that created the file.
            if (lock.enforced or lock.made) and not _holds_something(folder):
                self._lock = lock
                remove_partial(folder)
                return True
            lock.release(remove=lock.made)
        del self._made[made_before:]  # these belong to another process now
        return False

    def _make(self, folder: Path) -> None:
        """Create a folder and its missing parents, and remember which."""
        missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir()
                self._made.append(path)

    def release(self) -> None:
        """Unlock the folder, from the process that took it; remove it if it is empty."""
        if os.getpid() == self._process:
            self._release()

    def _release(self) -> None:
        """Unlock the folder; remove it if it is empty."""
        if self._lock is not None:
            os.environ.pop(FOLDER_VARIABLE, None)
            # Deleted while locked: a process that has opened the file notices and opens a new one.
            self._lock.release(remove=True)
            self._lock = None
        if self._made and self.path is not None and not _holds_something(self.path):
            with suppress(OSError):
                (self.path / JOB).unlink()
        for path in reversed(self._made):
            with suppress(OSError):  # not empty
                path.rmdir()
        self._made.clear()

    def _is_inside(self, error: OSError) -> bool:
        """Whether a write failed in the folder; some errors do not name the file."""
        if self.path is None:
            return False
        where = error.filename
        return not isinstance(where, str) or self.path.resolve() in Path(where).resolve().parents

    def _mend(self, error: WriteError) -> str:
        """What the user can do if nothing more can be written to the folder."""
        assert self.path is not None
        last = self.path / "last.ckpt"
        resume = last if os.path.exists(last) else self._checkpoint
        if resume is not None and _same(resume.parent, self.path):
            elsewhere = (
                f"resume in another folder: --ckpt_path {shlex.quote(str(resume))} --run.root DIR"
            )
        else:
            elsewhere = "choose another folder with --run.root DIR"
        return f"free some space, or {elsewhere}" if error.is_full else elsewhere


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _is_guest(checkpoint: Path) -> bool:
    """Whether a checkpoint lies among files that may not be its run's, and would be replaced."""
    if checkpoint.name in ("last.ckpt", "best.ckpt"):
        return False
    return any((checkpoint.parent / name).exists() for name in (*KEPT, "samples.txt", "pictures"))


def _holds_something(folder: Path) -> bool:
    """Whether a folder contains anything but a lock and partial files of killed processes."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return os.path.lexists(folder)
    return any(name not in (LOCK, JOB) and not is_partial(name) for name in names)
