from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Ended, listing

from makemoe.checkpoint.format import read, write
from makemoe.cli.options import UNHEALTHY

Call = Callable[..., Ended]


def naming(copied: Path, **texts: str) -> None:
    """Let the checkpoint name other texts."""
    checkpoint = dict(read(copied / "last.ckpt"))
    checkpoint["datamodule_hyper_parameters"] |= texts
    write(checkpoint, copied / "last.ckpt")


COMMANDS = {
    "fit": ("--trainer.max_steps=22", "--run.name=more"),
    "validate": (),
    "test": (),
    "inspect": (),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_text_that_only_the_checkpoint_names_is_told_as_such(
    makemoe: Call, copied: Path, command: str
) -> None:
    path = "checkpoints/tiny/last.ckpt"
    call = (command, *COMMANDS[command], "--ckpt_path", path)
    naming(copied, corpus="gone.txt")
    before = listing(Path())
    ended = makemoe(*call)
    assert ended.status == 1
    assert ended.error == (
        f"--data.corpus 'gone.txt', named by the checkpoint {path} and searched in {Path.cwd()}: "
        "no such file; pass another text with --data.corpus FILE"
    )
    # What the user names is the user's.
    assert "checkpoint" not in makemoe(*call, "--data.corpus=none.txt").error
    assert makemoe(*call, "--data.corpus=none.txt").error.startswith("--data.corpus 'none.txt': no")
    naming(copied, corpus="/gone/a.txt")
    assert f"named by the checkpoint {path}: no such file; pass" in makemoe(*call).error
    assert listing(Path()).keys() == before.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_is_read_once(
    makemoe: Call, copied: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    load, loaded = torch.load, []

    def counting(path: Any, **options: Any) -> Any:
        loaded.append(str(path))
        return load(path, **options)

    monkeypatch.setattr(torch, "load", counting)
    path = "checkpoints/tiny/last.ckpt"
    assert makemoe(command, *COMMANDS[command], "--ckpt_path", path).status in (0, UNHEALTHY)
    assert loaded == [path]


def test_a_test_text_that_only_the_checkpoint_names_is_told_as_such(
    makemoe: Call, copied: Path
) -> None:
    naming(copied, test_corpus="gone.txt")
    ended = makemoe("test", "--ckpt_path=last")
    assert ended.status == 1
    assert ended.error.startswith("--data.test_corpus 'gone.txt', named by the checkpoint ")
    assert ended.error.endswith("pass another text with --data.test_corpus FILE")
    assert makemoe("validate", "--ckpt_path=last").status == 0
    Path("one.txt").write_text("aüöß")
    flags = ("--data.test_corpus=one.txt", "--data.unknown=skip")
    assert "has one token" in makemoe("test", "--ckpt_path=last", *flags).err
