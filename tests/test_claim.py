"""Who gets which folder, and what is left of it."""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from commandline import listing

from makemoe.claim import OwnFolder
from makemoe.errors import CheckpointError, UsageError, WriteError
from makemoe.run import FOLDER_VARIABLE, LOCK, RunSettings


def take_and_fail(error: BaseException, files: Sequence[str] = ()) -> None:
    """A run that leaves files and fails."""
    with OwnFolder() as folder:
        path = folder.take(RunSettings(), "small")
        for file in files:
            leave(f"{path}/{file}")
        raise error


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    yield
    monkeypatch.setenv(FOLDER_VARIABLE, "")


def leave(path: str) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x")
    return file


def taken(run: RunSettings, *more: object, **named: object) -> str:
    """The folder that is taken, left again at once."""
    with OwnFolder() as folder:
        return str(folder.take(run, "small", *more, **named))  # type: ignore


def test_a_new_run_takes_the_next_free_number() -> None:
    assert taken(RunSettings()) == "checkpoints/small"
    leave("checkpoints/small/last.ckpt")
    leave("checkpoints/small-2/config.yaml")
    Path("checkpoints/small-3").mkdir()
    assert taken(RunSettings()) == "checkpoints/small-3"
    assert taken(RunSettings(root="runs/of/mine")) == "runs/of/mine/small"


def test_a_folder_in_which_nothing_is_left_is_removed_with_the_parents_it_had_to_make() -> None:
    Path("there").mkdir()
    Path("there/empty").mkdir()
    before = listing(Path())
    for name in (None, "empty", "new"):
        taken(RunSettings(root="there", name=name))
    taken(RunSettings(root="there/and/here"))
    with pytest.raises(KeyboardInterrupt):
        take_and_fail(KeyboardInterrupt())
    assert listing(Path()) == before
    assert not os.environ.get(FOLDER_VARIABLE)


def test_a_folder_in_which_something_is_left_stays_without_its_lock() -> None:
    with OwnFolder() as folder:
        path = folder.take(RunSettings(), "small")
        assert os.listdir(path) == [LOCK]
        leave(f"{path}/config.yaml")
    assert os.listdir(path) == ["config.yaml"]


def test_what_a_killed_run_leaves_before_it_trains_is_nothing() -> None:
    leave(f"checkpoints/small/{LOCK}")
    leave("checkpoints/small/.config.yaml.1a2b3c4d.partial")
    with OwnFolder() as folder:
        assert folder.take(RunSettings(name="small"), "run") == Path("checkpoints/small")
        assert os.listdir("checkpoints/small") == [LOCK]


def three_together_have_three_folders() -> None:
    with OwnFolder() as one, OwnFolder() as other, OwnFolder() as named:
        paths = []
        for folder, name in ((one, None), (other, None), (named, "small-3")):
            os.environ[FOLDER_VARIABLE] = ""
            paths.append(str(folder.take(RunSettings(name=name), "small")))
        assert paths == [f"checkpoints/small{end}" for end in ("", "-2", "-3")]
        os.environ[FOLDER_VARIABLE] = ""
        with OwnFolder() as last, pytest.raises(UsageError, match="small-2 already exists: choose"):
            last.take(RunSettings(name="small-2"), "small")
    assert not os.listdir()


def test_those_that_are_there_together_have_folders_of_their_own() -> None:
    three_together_have_three_folders()


def test_they_have_without_flock_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("makemoe.locks._try_lock", lambda *_, **__: None)
    three_together_have_three_folders()


def test_a_name_that_is_taken_is_refused_and_told_of_what_is_there() -> None:
    leave("checkpoints/done/last.ckpt")
    leave("checkpoints/begun/config.yaml")
    leave("checkpoints/file")
    before = listing(Path())
    with pytest.raises(UsageError, match=r"resume it with --ckpt_path checkpoints/done/last\.ckpt"):
        taken(RunSettings(name="done"))
    for name in ("begun", "file"):
        with pytest.raises(UsageError, match=r"already exists: choose another --run\.name") as told:
            taken(RunSettings(name=name))
        assert "last.ckpt" not in str(told.value)
    assert listing(Path()) == before


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({}, False, "checkpoints/a"),
        ({"name": "a"}, False, "checkpoints/a"),
        ({"name": "new"}, False, "checkpoints/new"),
        ({"root": "other"}, True, "other/a"),
        ({"root": "other", "name": "new"}, True, "other/new"),
        ({"root": "./checkpoints/"}, True, "checkpoints/a"),
        ({"root": "full"}, True, "full/a-2"),
    ],
)
def test_a_resumed_run_goes_on_in_its_folder_or_where_the_user_says(
    settings: dict[str, str], given: bool, expected: str
) -> None:
    checkpoint = leave("checkpoints/a/last.ckpt")
    leave("full/a/last.ckpt")
    assert taken(RunSettings(**settings), checkpoint, given) == expected  # type: ignore
    assert checkpoint.exists()


def test_a_checkpoint_in_the_working_folder_is_resumed_there() -> None:
    assert taken(RunSettings(), leave("my.ckpt")) == "."
    assert os.listdir() == ["my.ckpt"]


@pytest.mark.parametrize("other", ["config.yaml", "samples.txt", "last.ckpt", "pictures/a.png"])
def test_a_checkpoint_beside_other_files_is_resumed_as_a_run_of_its_own(other: str) -> None:
    leave(other)
    checkpoint = leave("my.ckpt")
    assert taken(RunSettings(), checkpoint) == "checkpoints/my"
    os.environ[FOLDER_VARIABLE] = ""
    leave("checkpoints/my/last.ckpt")
    assert taken(RunSettings(), checkpoint) == "checkpoints/my-2"
    os.environ[FOLDER_VARIABLE] = ""
    assert taken(RunSettings(name="new"), checkpoint) == "checkpoints/new"


def test_a_checkpoint_with_the_name_of_its_folder_is_resumed_there_only_if_asked() -> None:
    leave("checkpoints/my/config.yaml")
    checkpoint = leave("checkpoints/my/my.ckpt")
    assert taken(RunSettings(), checkpoint) == "checkpoints/my-2"
    os.environ[FOLDER_VARIABLE] = ""
    assert taken(RunSettings(name="my"), checkpoint) == "checkpoints/my"


def test_a_run_that_is_being_trained_is_not_resumed() -> None:
    checkpoint = leave("checkpoints/a/last.ckpt")
    with OwnFolder() as first:
        first.take(RunSettings(), "small", checkpoint)
        os.environ[FOLDER_VARIABLE] = ""
        before = listing(Path())
        with pytest.raises(CheckpointError, match="run a is being trained by another process"):
            taken(RunSettings(), checkpoint)
        assert listing(Path()) == before
        assert taken(RunSettings(name="b"), checkpoint) == "checkpoints/b"
    os.environ[FOLDER_VARIABLE] = ""
    assert taken(RunSettings(), checkpoint) == "checkpoints/a"


def test_processes_of_one_run_share_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    leave("checkpoints/mine/last.ckpt")
    before = listing(Path())
    monkeypatch.setenv(FOLDER_VARIABLE, "checkpoints/mine")
    assert taken(RunSettings(name="mine")) == "checkpoints/mine"
    assert os.environ[FOLDER_VARIABLE] == "checkpoints/mine"
    assert listing(Path()) == before


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_another_process_than_the_first_takes_nothing(
    monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    leave("checkpoints/small/last.ckpt")
    before = listing(Path())
    monkeypatch.setenv(rank, "1")
    assert taken(RunSettings()) == "checkpoints/small"
    assert taken(RunSettings(name="small")) == "checkpoints/small"
    assert listing(Path()) == before
    monkeypatch.setenv(rank, "0")
    assert taken(RunSettings()) == "checkpoints/small-2"


@pytest.mark.parametrize("root", ["/proc/x", "file", "file/x", "link", "a" * 300])
def test_a_folder_that_cannot_be_made_is_one_error_with_its_name(root: str) -> None:
    leave("file")
    Path("link").symlink_to("link")
    before = os.listdir()
    with pytest.raises(CheckpointError) as told:
        taken(RunSettings(root=root))
    assert str(told.value).startswith(f"cannot write in the folder {root}/small: ")
    assert str(told.value).endswith("; choose another folder with --run.root DIR")
    assert os.listdir() == before


@pytest.mark.parametrize(
    ("number", "has_last", "mend"),
    [
        (errno.ENOSPC, False, "free some space, or choose another folder with --run.root DIR"),
        (errno.EROFS, False, "choose another folder with --run.root DIR"),
        (
            errno.ENOSPC,
            True,
            "free some space, or resume in another folder: "
            "--ckpt_path checkpoints/small/last.ckpt --run.root DIR",
        ),
    ],
)
@pytest.mark.parametrize("kind", [OSError, WriteError])
def test_a_write_that_fails_is_told_with_what_helps(
    kind: type[Exception], number: int, has_last: bool, mend: str
) -> None:
    error: Exception = OSError(number, os.strerror(number), "checkpoints/small/config.yaml")
    if kind is WriteError:
        error = WriteError("checkpoints/small/config.yaml", error)
    with pytest.raises(CheckpointError) as told:
        take_and_fail(error, ["last.ckpt"] * has_last)
    reason = os.strerror(number)
    assert str(told.value) == f"cannot write checkpoints/small/config.yaml: {reason}; {mend}"


def test_errors_of_other_places_stay_what_they_are() -> None:
    elsewhere = OSError(errno.ENOSPC, "No space left on device", "/elsewhere/file")
    with pytest.raises(OSError, match="elsewhere"):
        take_and_fail(elsewhere)
    with pytest.raises(OSError, match="output"), OwnFolder():
        raise OSError(errno.ENOSPC, "No space left for output")
