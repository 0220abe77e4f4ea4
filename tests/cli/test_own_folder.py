"""Runs side by side, run again, and where the disk takes nothing."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from commandline import TINY, Ended, listing, little_space, obeying, script
from nursery import MAKEMOE, Forked
from pairs import start_pairs
from processes import ENVIRONMENT, start, stop_when

from makemoe.checkpoint.format import read
from makemoe.run import LOCK

Call = Callable[..., Ended]


def wait_for(there: Callable[[], object], process: Forked | subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_fits_that_start_together_have_folders_of_their_own(tmp_path: Path) -> None:
    assert start_pairs(tmp_path, 2) == []


def test_a_run_is_trained_by_one_process_at_a_time(
    makemoe: Call, copied: Path, tmp_path: Path
) -> None:
    first = start(tmp_path, "--ckpt_path=last", "--trainer.max_steps=100000")
    steps = copied / "metrics.csv"
    before = steps.stat().st_mtime_ns
    wait_for(lambda: steps.stat().st_mtime_ns > before, first)
    assert "running" in makemoe("runs").out
    for checkpoint in ("last", "checkpoints/tiny/best.ckpt", "tiny"):
        ended = makemoe("fit", "--ckpt_path", checkpoint, "--trainer.max_steps=30")
        assert ended.status == 1
        assert ended.error.startswith("run tiny is being trained by another process: ")
        assert len(ended.err.splitlines()) == 1
    ended = makemoe("fit", "--ckpt_path=tiny", "--run.name=new", "--trainer.max_steps=30")
    assert ended.status == 0, ended.err
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert (copied / LOCK).exists()
    assert "running" not in makemoe("runs").out
    ended = makemoe("fit", "--ckpt_path=tiny", "--trainer.max_steps=22")
    assert ended.status == 0, ended.err
    assert not (copied / LOCK).exists()


def test_a_killed_run_samples_no_step_twice(makemoe: Call, tmp_path: Path) -> None:
    flags = (*TINY, "--trainer.max_steps=40", "--trainer.val_check_interval=2", "--run.name=run")
    flags += ("--run.save_every_n_steps=9",)
    run = tmp_path / "checkpoints" / "run"
    assert stop_when(start(tmp_path, *flags), run / "last.ckpt", signal.SIGKILL) < 0
    assert makemoe("fit", "--ckpt_path=last").status == 0
    steps = re.findall(r"(?m)^==== step (\d+)$", (run / "samples.txt").read_text())
    assert steps == [str(step) for step in range(2, 41, 2)]


@pytest.mark.parametrize(
    "flags",
    [
        ("--model.n_embd=32",),
        ("--model.optimizer=SGD",),
        ("--trainer.precision=half",),
        ("--run.sample_prompt=ß",),
        ("--trainer.callbacks=none.Such",),
    ],
)
@pytest.mark.parametrize("where", [(), ("--run.name=new",), ("--run.root=other/place",)])
def test_a_resume_that_is_refused_leaves_nothing(
    makemoe: Call, copied: Path, flags: tuple[str, ...], where: tuple[str, ...]
) -> None:
    before = listing(Path())
    ended = makemoe("fit", "--ckpt_path=checkpoints/tiny/last.ckpt", *flags, *where)
    assert ended.status in (1, 2), ended
    assert ended.error
    assert listing(Path()) == before


def test_a_run_that_is_interrupted_before_it_trains_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [MAKEMOE, "fit", *TINY, "--run.root=new/root", "--data.num_workers=0"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "new/root/run"
    wait_for((folder / LOCK).exists, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    if (folder / "config.yaml").exists():
        pytest.skip("it had begun to train")
    assert process.returncode == 130, told
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_under_another_root(makemoe: Call, copied: Path) -> None:
    before = listing(copied)
    command = ("fit", "--ckpt_path=checkpoints/tiny/last.ckpt", "--run.root=other")
    ended = makemoe(*command, "--trainer.max_steps=22")
    assert ended.status == 0, ended.err
    assert "makemoe: using checkpoints/tiny/last.ckpt (step 20)" in ended.err.splitlines()
    assert read("other/tiny/last.ckpt")["global_step"] == 22
    assert listing(copied) == before
    # There it is the newest run, and goes on in its place.
    ended = makemoe("fit", "--ckpt_path=last", "--run.root=other", "--trainer.max_steps=24")
    assert ended.status == 0, ended.err
    assert read("other/tiny/last.ckpt")["global_step"] == 24
    assert os.listdir("other") == ["tiny"]


def mend(error: str) -> list[str]:
    """The flags that an error says would help, with a folder for DIR."""
    found = re.search(r"(--ckpt_path \S+ )?--run\.root DIR$", error)
    assert found, error
    return found.group().replace("DIR", "elsewhere").split()


def test_where_a_resumed_run_cannot_write_the_mend_that_is_told_works(
    makemoe: Call, copied: Path, tmp_path: Path
) -> None:
    longer = ("--trainer.max_steps", "22")
    before = listing(copied)
    copied.chmod(0o555)
    ended = script("fit", "--ckpt_path=last", *longer, cwd=tmp_path, preexec_fn=obeying)
    copied.chmod(0o755)
    if ended.status == 0:
        pytest.skip("this system lets root write anywhere")
    assert ended.status == 1
    assert "cannot write in the folder checkpoints/tiny: Permission denied" in ended.error
    again = makemoe("fit", *mend(ended.error), *longer)
    assert again.status == 0, again.err
    assert listing(copied) == before
    assert read(tmp_path / "elsewhere/tiny/last.ckpt")["global_step"] == 22


def test_where_a_new_run_cannot_write_the_mend_that_is_told_works(
    makemoe: Call, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir(0o555)
    short = (*TINY, "--trainer.max_steps=1")
    ended = script("fit", *short, cwd=tmp_path, preexec_fn=obeying)
    if ended.status == 0:
        pytest.skip("this system lets root write anywhere")
    assert ended.status == 1
    assert "cannot write in the folder checkpoints/run: Permission denied" in ended.error
    again = makemoe("fit", *short, *mend(ended.error))
    assert again.status == 0, again.err
    assert (tmp_path / "elsewhere/run/last.ckpt").exists()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_on_a_full_disk_the_mend_that_is_told_works(
    makemoe: Call, copied: Path, tmp_path: Path
) -> None:
    longer = ("--trainer.max_steps", "22")
    ended = script("fit", "--ckpt_path=last", *longer, cwd=tmp_path, preexec_fn=little_space)
    assert ended.status == 1
    assert ended.error.startswith("cannot write the checkpoint checkpoints/tiny/last.ckpt: ")
    assert "; free some space, or resume in another folder: " in ended.error
    again = makemoe("fit", *mend(ended.error), *longer)
    assert again.status == 0, again.err
    assert read(tmp_path / "elsewhere/tiny/last.ckpt")["global_step"] == 22


def test_a_file_of_the_run_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    no_space = partial(little_space, 100)
    ended = script("fit", *TINY, "--run.name=mine", cwd=tmp_path, preexec_fn=no_space)
    assert ended.status == 1
    assert ended.error == (
        "cannot write checkpoints/mine/config.yaml: File too large; "
        "free some space, or choose another folder with --run.root DIR"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["validate", "test", "fit"])
def test_commands_say_once_which_file_they_use(makemoe: Call, copied: Path, command: str) -> None:
    more = ("--trainer.max_steps=22",) if command == "fit" else ()
    ended = makemoe(command, "--ckpt_path=last", *more)
    assert ended.status == 0, ended.err
    assert ended.err.count("makemoe: using ") == 1
    assert "makemoe: using checkpoints/tiny/last.ckpt (step 20)\n" in ended.err


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "inspect"])
def test_best_of_a_run_that_has_none_is_refused_by_every_command(
    makemoe: Call, copied: Path, command: str
) -> None:
    shutil.copytree(copied, "checkpoints/newer")
    Path("checkpoints/newer/best.ckpt").unlink()
    Path("checkpoints/newer/metrics.csv").touch()
    ended = makemoe(command, "--ckpt_path=best")
    assert ended.status == 1
    assert ended.error == (
        "--ckpt_path best: the newest run, checkpoints/newer, has no best.ckpt; "
        "choose --ckpt_path last or --ckpt_path checkpoints/tiny/best.ckpt"
    )


def test_two_processes_say_once_which_file_they_use_and_resume_one_run(
    copied: Path, tmp_path: Path
) -> None:
    two = ("--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu")
    ended = script("fit", "--ckpt_path=last", *two, "--trainer.max_steps=30", cwd=tmp_path)
    assert ended.status == 0, ended.err
    assert ended.err.count("makemoe: using checkpoints/tiny/last.ckpt (step 20)\n") == 1
    assert ended.err.count("best val_loss") == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["tiny"]
    assert not (copied / LOCK).exists()
