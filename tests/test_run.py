import os
from pathlib import Path

import pytest

from makemoe.errors import CheckpointError, UsageError
from makemoe.run import FOLDER_VARIABLE, RunSettings, find_checkpoint, new_folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


def leave(path: str, age: float = 0) -> Path:
    """A file, `age` seconds old."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x")
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"save_every_n_steps": 0}, "save_every_n_steps 0"),
        ({"sample_tokens": -1}, "sample_tokens -1"),
        ({"sample_prompt": ""}, "sample_prompt"),
        ({"name": "a/b"}, "'a/b'"),
        ({"name": ".."}, "'..'"),
        ({"name": "."}, "'.'"),
        ({"name": ""}, "''"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RunSettings(**settings)  # type: ignore[arg-type]


def test_a_new_run_takes_the_next_free_number_and_makes_nothing() -> None:
    assert new_folder(RunSettings(), "small") == Path("checkpoints/small")
    leave("checkpoints/small/last.ckpt")
    leave("checkpoints/small-2/config.yaml")
    Path("checkpoints/small-3").mkdir()
    assert new_folder(RunSettings(), "small") == Path("checkpoints/small-3")
    assert new_folder(RunSettings(root="runs"), "small") == Path("runs/small")
    assert not Path("runs").exists()


def test_a_name_that_is_taken_is_refused() -> None:
    leave("checkpoints/mine/last.ckpt")
    with pytest.raises(UsageError, match=r"--ckpt_path checkpoints/mine/last\.ckpt.*--run\.name"):
        new_folder(RunSettings(name="mine"), "small")
    assert new_folder(RunSettings(name="other"), "small") == Path("checkpoints/other")


def test_processes_of_one_run_share_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    leave("checkpoints/mine/last.ckpt")
    monkeypatch.setenv(FOLDER_VARIABLE, "checkpoints/mine")
    assert new_folder(RunSettings(name="mine"), "small") == Path("checkpoints/mine")


def test_last_and_best_are_those_of_the_newest_run() -> None:
    old, new = leave("checkpoints/a/last.ckpt", age=9), leave("checkpoints/b/last.ckpt", age=5)
    best = leave("checkpoints/a/best.ckpt", age=9)
    assert find_checkpoint("last", RunSettings()) == str(new)
    assert find_checkpoint("best", RunSettings()) == str(best)
    assert find_checkpoint("last", RunSettings(name="a")) == str(old)
    assert find_checkpoint("some/file.ckpt", RunSettings()) == "some/file.ckpt"


def test_last_of_a_recipe_is_that_of_its_own_newest_run() -> None:
    leave("checkpoints/small/last.ckpt", age=9)
    newest = leave("checkpoints/small-12/last.ckpt", age=5)
    leave("checkpoints/small-capacity/last.ckpt")
    leave("checkpoints/smaller/last.ckpt")
    assert find_checkpoint("last", RunSettings(), "small") == str(newest)


@pytest.mark.parametrize("name", [None, "small"])
def test_no_run_to_go_on_from(name: str | None) -> None:
    leave("checkpoints/smaller/best.ckpt")
    with pytest.raises(CheckpointError, match=r"--ckpt_path last: .* under checkpoints/"):
        find_checkpoint("last", RunSettings(), name)
    with pytest.raises(CheckpointError, match="run a has left"):
        find_checkpoint("last", RunSettings(name="a"))
