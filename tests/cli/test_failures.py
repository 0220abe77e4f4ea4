import errno
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import MAKEMOE, TINY, Ended, script

from makemoe import __version__

Call = Callable[..., Ended]
PREDICT = ("predict", "--ckpt_path=last")


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have `makemoe PREDICT` raise it."""

    def predict(options: object) -> int:
        raise error

    monkeypatch.setattr("makemoe.cli.predict.predict", predict)


@pytest.mark.parametrize(
    "error", [TypeError("of\ntwo lines"), RecursionError("of\ntwo lines"), AssertionError()]
)
def test_what_nobody_thought_of_is_reported_as_our_bug_in_one_line(
    makemoe: Call, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    raising(monkeypatch, error)
    ended = makemoe(*PREDICT)
    assert ended.status == 70
    text = ": of two lines" if error.args else ""
    assert ended.error == (
        f"this is a bug in makemoe {__version__}: {type(error).__name__}{text}; please report it "
        "(docs/reliability.md says how); MAKEMOE_DEBUG=1 shows the traceback"
    )
    assert len(ended.err.splitlines()) == 1


def test_a_fault_in_debugging_shows_its_traceback_before_the_line(
    makemoe: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, ValueError("x" * 10_000))
    monkeypatch.setenv("MAKEMOE_DEBUG", "1")
    *trace, line = makemoe(*PREDICT).err.splitlines()
    assert trace[0].startswith("Traceback")
    assert line.startswith("makemoe: error: this is a bug in makemoe")
    assert len(line) < 500


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 80.0 GiB for an array"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB. GPU 0 has ..."),
        RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"),
    ],
)
def test_memory_that_runs_out_is_told_with_what_to_lower(
    makemoe: Call, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    raising(monkeypatch, error)
    ended = makemoe(*PREDICT)
    assert ended.status == 1
    assert "memory ran out" in ended.error
    assert "--num_samples" in ended.error
    assert ("(tried to allocate 80.00 GiB)" in ended.error) == ("Tried" in str(error))


def test_torch_that_gets_no_memory_is_understood() -> None:
    from makemoe.cli.failures import is_out_of_memory, memory_ran_out

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert "(tried to allocate 1152921504606846976 bytes)" in memory_ran_out(caught.value, "fit")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EMFILE, "Too many open files", "x.txt"), "x.txt: Too many open files"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "Address already in use"),
        (OSError("3 requested and 2 written"), "OSError: 3 requested and 2 written"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "cannot write x: Permission den"),
    ],
)
def test_what_the_system_refuses_is_told_with_the_file(
    makemoe: Call, monkeypatch: pytest.MonkeyPatch, error: OSError, told: str
) -> None:
    raising(monkeypatch, error)
    monkeypatch.setattr("makemoe.cli.failures.close_output", lambda: None)
    ended = makemoe(*PREDICT)
    assert ended.status == 1
    assert ended.error.startswith(told)


def test_the_folder_named_for_a_run_that_cannot_be_written_works(
    makemoe: Call, copied: Path
) -> None:
    (copied / "events.out.tfevents.1").mkdir()
    (copied / "config.yaml").unlink()
    (copied / "config.yaml").mkdir()
    refused = makemoe("fit", "--ckpt_path", "last", "--trainer.max_steps=21")
    assert refused.status == 1
    assert "config.yaml" in refused.error
    elsewhere = ["--run.root", "elsewhere", "--run.name", "again"]
    last = str(copied / "last.ckpt")
    ended = makemoe("fit", "--ckpt_path", last, *elsewhere, "--trainer.max_steps=21")
    assert ended.status == 0, ended.err
    assert Path("elsewhere/again/last.ckpt").exists()


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'cd "$1" && rmdir "$1" && {MAKEMOE} predict', "sh", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "makemoe: error: the working folder has been removed: change to another one\n"
    )


@pytest.mark.parametrize("command", ["predict", "inspect", "--version"])
def test_a_closed_output_is_told(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{MAKEMOE} {command} >&-"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("makemoe: error: standard output is closed")
    assert len(done.stderr.splitlines()) == 1


def test_training_goes_on_without_standard_streams_and_keeps_its_files_clean(
    tmp_path: Path,
) -> None:
    whole = script("fit", *TINY, "--run.name=whole", cwd=tmp_path)
    assert whole.status == 0
    fit = " ".join(map(str, (MAKEMOE, "fit", *TINY, "--run.name=run")))
    done = subprocess.run(["/bin/sh", "-c", f"{fit} <&- >&- 2>&-"], cwd=tmp_path, check=False)
    assert done.returncode == 0
    runs = tmp_path / "checkpoints"
    assert (runs / "run/samples.txt").read_bytes() == (runs / "whole/samples.txt").read_bytes()
    header, *_ = (runs / "run/metrics.csv").read_text().splitlines()
    assert header.startswith("step,")


@pytest.mark.parametrize("word", ["\x1b[31mred", "\u202egnirts", "two\nlines", "\udcff", "\x9b"])
def test_what_the_user_typed_does_not_steer_the_terminal(
    makemoe: Callable[..., Ended], word: str
) -> None:
    ended = makemoe("predict", "--ckpt_path", word)
    assert ended.status == 1
    assert ended.error.isprintable()


def test_a_long_word_leaves_what_is_wrong_and_what_to_do(makemoe: Callable[..., Ended]) -> None:
    ended = makemoe("predict", "--ckpt_path", "x" * 100_000)
    assert len(ended.error) < 400
    assert ended.error.startswith("--ckpt_path xxx")
    assert "no such file" in ended.error


@pytest.mark.parametrize("command", ["predict", "inspect", "runs"])
def test_help_that_does_not_fit_the_disk_is_an_error_in_one_line(command: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [MAKEMOE, command, "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.stderr == "makemoe: error: cannot write standard output: No space left on device\n"
    assert done.returncode == 1
