"""The one folder a run writes into: claimed by its first process, held while it trains.

Two processes that start together never share a folder, and a run is trained by one at a time.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from itertools import chain, count
from pathlib import Path
from types import TracebackType

from makemoe.errors import DISK_FAULTS, CheckpointError, UsageError, WriteError
from makemoe.files import is_partial, remove_partial
from makemoe.locks import Lock
from makemoe.run import FOLDER_VARIABLE, LOCK, RunSettings, is_first_process

PATIENCE_S = 0.25
"""How long a lock is waited for that `makemoe runs` may be looking at."""

ATTEMPTS = 10
"""How often a folder is made again that another process has just removed."""


class OwnFolder(AbstractContextManager["OwnFolder"]):
    """The folder of the run that this process trains; left in order when the block ends.

    If the run has put nothing there, the folder is removed, and so are parents that it had to make.

    Attributes:
        path: the folder; None until it is taken, and where nothing is trained.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
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
        """Take the folder a fit is to write into, and tell it to the processes this one starts.

        A new run gets a folder that holds nothing. A resumed run goes on in its own folder, unless
        the user names another run or root.

        Args:
            run: where runs are kept, and the name if the user gave one.
            default_name: otherwise the name, numbered when taken.
            checkpoint: what the run is resumed from.
            root_is_given: whether `run.root` is the user's word, not the default.

        Raises:
            UsageError: when the name the user gave is taken.
            CheckpointError: when another process trains the run that is to be resumed.
            WriteError: when nothing can be written there.
        """
        if told := os.environ.get(FOLDER_VARIABLE):
            self.path = Path(told)
            return self.path
        self._checkpoint = checkpoint
        root, name = Path(run.root), run.name or default_name
        if checkpoint is not None and run.name is None:
            name = checkpoint.parent.resolve().name
        self.path = root / name
        resumes = checkpoint is not None and (
            (run.name is None and not root_is_given) or _same(self.path, checkpoint.parent)
        )
        if checkpoint is not None and resumes:
            self.path = checkpoint.parent
        if not is_first_process():
            return self.path  # it writes nothing there; the first process broadcasts what counts
        try:
            if resumes:
                self._take_again(self.path)
            else:
                numbered = (root / f"{name}-{number}" for number in count(2))
                self._take_new([self.path] if run.name else chain([self.path], numbered))
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
        """Let the folder go; of what the disk refused, tell the user what helps.

        Raises:
            CheckpointError: in the place of a WriteError, or of an OSError of the folder's.
        """
        if os.getpid() == self._process:
            self._release()
        if isinstance(error, OSError) and error.errno in DISK_FAULTS and self._is_inside(error):
            error = WriteError(error.filename or "to the disk", error)
        if isinstance(error, WriteError):
            raise CheckpointError(f"{error}; {self._mend(error)}") from error

    def _take_again(self, folder: Path) -> None:
        """Take the folder of a run that is there."""
        lock = Lock(folder / LOCK)
        if not lock.take(PATIENCE_S):
            raise CheckpointError(
                f"run {folder.resolve().name} is being trained by another process: wait until "
                f"it ends, or continue {self._checkpoint} as a new run with --run.name NEW"
            )
        self._lock = lock
        remove_partial(folder)

    def _take_new(self, folders: Iterable[Path]) -> None:
        """Take the first folder that holds nothing and that nobody else takes."""
        for folder in folders:
            self.path = folder
            if self._got(folder):
                return
        last = folder / "last.ckpt"
        resume = f"resume it with --ckpt_path {last}, or " if os.path.exists(last) else ""
        raise UsageError(f"{folder} already exists: {resume}choose another --run.name")

    def _got(self, folder: Path) -> bool:
        """Take a folder, or leave it to whoever has it."""
        for _ in range(ATTEMPTS):
            try:
                return self._try(folder)
            except FileNotFoundError as error:
                vanished = error  # a parent: another process has removed what it had made
        raise vanished

    def _try(self, folder: Path) -> bool:
        if _holds_something(folder):
            return False
        made_before = len(self._made)
        self._make(folder)
        lock = Lock(folder / LOCK)
        if lock.take():
            # Without flock, the folder belongs to whoever created the file.
            if (lock.enforced or lock.made) and not _holds_something(folder):
                self._lock = lock
                remove_partial(folder)
                return True
            lock.release(remove=lock.made)
        del self._made[made_before:]  # another process's now
        return False

    def _make(self, folder: Path) -> None:
        """Make a folder and its parents; remember which."""
        missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir()
                self._made.append(path)

    def _release(self) -> None:
        """Unlock the folder; remove it if it holds nothing."""
        if self._lock is not None:
            os.environ.pop(FOLDER_VARIABLE, None)
            # Deleted while it is held: a process that has opened it sees that and opens a new one.
            self._lock.release(remove=True)
            self._lock = None
        for path in reversed(self._made):
            with suppress(OSError):  # not empty
                path.rmdir()
        self._made.clear()

    def _is_inside(self, error: OSError) -> bool:
        """Whether a write failed in the folder; not every error says where."""
        if self.path is None:
            return False
        where = error.filename
        return not isinstance(where, str) or self.path.resolve() in Path(where).resolve().parents

    def _mend(self, error: WriteError) -> str:
        """What the user can do about a folder that takes nothing more."""
        assert self.path is not None
        last = self.path / "last.ckpt"
        resume = last if os.path.exists(last) else self._checkpoint
        if resume is not None and _same(resume.parent, self.path):
            elsewhere = f"go on in another folder: --ckpt_path {resume} --run.root DIR"
        else:
            elsewhere = "choose another folder with --run.root DIR"
        return f"make room there, or {elsewhere}" if error.is_full else elsewhere


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _holds_something(folder: Path) -> bool:
    """Whether anything but a lock, or what a killed process was writing, is in the place."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return os.path.lexists(folder)
    return any(name != LOCK and not is_partial(name) for name in names)
