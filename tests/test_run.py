import os
import subprocess
import sys
from pathlib import Path

import pytest

from makemoe.errors import CheckpointError, UsageError
from makemoe.run import CHECKPOINT_VARIABLE, RunSettings, find_checkpoint, runs_in


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CHECKPOINT_VARIABLE, "")


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
        ({"root": "a\0b"}, "NUL"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RunSettings(**settings)  # type: ignore[arg-type]


def test_the_newest_run_is_the_one_that_wrote_last() -> None:
    leave("checkpoints/a/last.ckpt", age=9)
    leave("checkpoints/b/last.ckpt", age=8)
    leave("checkpoints/a/metrics.csv", age=5)
    leave("checkpoints/b/samples.txt", age=1)
    leave("checkpoints/c/notes.txt", age=0)
    leave("checkpoints/a file", age=0)
    Path("checkpoints/d/config.yaml").mkdir(parents=True)
    assert [run.name for run in runs_in("checkpoints")] == ["a", "b"]
    assert runs_in("nowhere") == []


def test_last_and_best_are_those_of_the_newest_run() -> None:
    old, new = leave("checkpoints/a/last.ckpt", age=9), leave("checkpoints/b/last.ckpt", age=5)
    best = leave("checkpoints/b/best.ckpt", age=9)
    assert find_checkpoint("last", RunSettings()) == str(new)
    assert find_checkpoint("best", RunSettings()) == str(best)
    assert find_checkpoint("last", RunSettings(name="a")) == str(old)
    assert find_checkpoint("some/file.ckpt", RunSettings()) == "some/file.ckpt"


@pytest.mark.parametrize(("asked", "other"), [("last", "best"), ("best", "last")])
def test_an_older_run_is_not_taken_for_the_newest(asked: str, other: str) -> None:
    leave(f"checkpoints/a/{asked}.ckpt", age=9)
    leave(f"checkpoints/b/{other}.ckpt", age=5)
    with pytest.raises(CheckpointError) as told:
        find_checkpoint(asked, RunSettings())
    assert f"the newest run, checkpoints/b, has no {asked}.ckpt" in str(told.value)
    assert f"--ckpt_path {other} or --ckpt_path checkpoints/a/{asked}.ckpt" in str(told.value)
    with pytest.raises(CheckpointError, match=f"the run, checkpoints/b, has no {asked}.ckpt"):
        find_checkpoint(asked, RunSettings(name="b"))


def test_a_run_that_has_saved_nothing_yet_is_the_newest_too() -> None:
    leave("checkpoints/b/config.yaml", age=5)
    with pytest.raises(CheckpointError, match="wait until it saves one"):
        find_checkpoint("last", RunSettings())


def test_last_of_a_recipe_is_that_of_its_own_newest_run() -> None:
    leave("checkpoints/small/last.ckpt", age=9)
    newest = leave("checkpoints/small-12/last.ckpt", age=5)
    leave("checkpoints/small-capacity/last.ckpt")
    leave("checkpoints/smaller/last.ckpt")
    assert find_checkpoint("last", RunSettings(), "small") == str(newest)


@pytest.mark.parametrize("name", [None, "small"])
def test_no_run_to_go_on_from(name: str | None) -> None:
    if name:
        leave("checkpoints/smaller/best.ckpt")
    with pytest.raises(CheckpointError, match=r"--ckpt_path last: no run .*in checkpoints/"):
        find_checkpoint("last", RunSettings(), name)
    with pytest.raises(CheckpointError, match="no run a in checkpoints/"):
        find_checkpoint("last", RunSettings(name="a"))


def test_a_run_s_name_stands_for_its_last_checkpoint() -> None:
    here = leave("checkpoints/a/last.ckpt", age=9)
    there = leave("others/b/last.ckpt", age=5)
    assert find_checkpoint("a", RunSettings()) == str(here)
    assert find_checkpoint("a", RunSettings(name="new")) == str(here)
    assert find_checkpoint("b", RunSettings(root="others")) == str(there)


def test_a_file_comes_before_a_run_of_its_name() -> None:
    leave("checkpoints/a/last.ckpt")
    Path("a").mkdir()
    assert find_checkpoint("a", RunSettings()) == "checkpoints/a/last.ckpt"
    Path("a").rmdir()
    leave("a")
    assert find_checkpoint("a", RunSettings()) == "a"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("quikstart", "did you mean quickstart?"),
        ("zebra", "see makemoe runs"),
        ("early", "has no last.ckpt; choose --ckpt_path checkpoints/early/best.ckpt"),
        ("earlier", "has no last.ckpt; wait"),
    ],
)
def test_a_name_that_no_checkpoint_has(asked: str, words: str) -> None:
    for file in ("quickstart/last.ckpt", "early/best.ckpt", "earlier/config.yaml"):
        leave(f"checkpoints/{file}")
    with pytest.raises(CheckpointError) as told:
        find_checkpoint(asked, RunSettings())
    assert f"--ckpt_path {asked}: " in str(told.value)
    assert words in str(told.value)


@pytest.mark.parametrize("asked", ["last", "a"])
def test_with_a_new_root_the_file_in_the_usual_one_is_named(asked: str) -> None:
    leave("checkpoints/a/last.ckpt")
    with pytest.raises(CheckpointError, match=r"mean --ckpt_path checkpoints/a/last\.ckpt\?"):
        find_checkpoint(asked, RunSettings(root="new"))


def test_a_process_that_is_started_uses_the_file_of_the_one_that_starts_it() -> None:
    leave("checkpoints/a/last.ckpt", age=5)
    ask = (
        "import os, sys; from makemoe.run import RunSettings, find_checkpoint;"
        "print(find_checkpoint('last', RunSettings()))"
    )
    start = (
        f"{ask}; import subprocess; from pathlib import Path;"
        "Path('checkpoints/b').mkdir(); Path('checkpoints/b/last.ckpt').touch();"
        "sys.stdout.flush();"
        f"subprocess.run([sys.executable, '-c', {ask!r}], env=os.environ | {{'LOCAL_RANK': '1'}})"
    )
    for program, answers in ((start, ["a", "a"]), (ask, ["b"])):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stdout.split() == [f"checkpoints/{run}/last.ckpt" for run in answers]
