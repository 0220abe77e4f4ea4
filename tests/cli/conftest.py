import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from makemoe.cli import main
from makemoe.run import FOLDER_VARIABLE

MAKEMOE = Path(sys.executable).parent / "makemoe"
TINY = (
    "--model.n_layer 1 --model.n_embd 16 --model.n_head 2 --model.block_size 16 "
    "--model.num_experts 3 --data.batch_size 8 --trainer.accelerator cpu --trainer.max_steps 20 "
    "--trainer.val_check_interval 10 --trainer.log_every_n_steps 5 --run.sample_tokens 8"
).split()


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that tells of an error; nothing else was said of it."""
        *before, line = self.err.splitlines()
        assert line.startswith("makemoe: error: "), self.err
        assert "Traceback" not in self.err
        assert not any("error" in other.lower() for other in before), self.err
        return line.removeprefix("makemoe: error: ")


def script(*arguments: str, cwd: Path, **options: Any) -> Ended:
    """What the installed console script does, in a process of its own."""
    done = subprocess.run(
        [MAKEMOE, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"} | options.pop("env", {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a tiny model was trained; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    ended = script("fit", *TINY, "--run.name", "tiny", cwd=folder)
    assert ended.status == 0, ended.err
    assert ended.out == ""
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """The working folder, with a run of one's own in it: checkpoints/tiny."""
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / "tiny"


@pytest.fixture
def makemoe(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Ended]]:
    """The command line within this process, which saves its start; in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(FOLDER_VARIABLE, "")

    def call(*arguments: str) -> Ended:
        monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
        capfd.readouterr()
        try:
            status = main(arguments)
        except SystemExit as exit:  # how argparse ends after help
            assert isinstance(exit.code, int)
            status = exit.code
        return Ended(status, *capfd.readouterr())

    yield call
    sys.modules.pop("stranger", None)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"a folder"
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }
