import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import TINY, Ended, script

from makemoe.cli import main
from makemoe.run import FOLDER_VARIABLE


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
    # Lightning calls jsonargparse in an old way, and pytest makes jsonargparse say so.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

    def call(*arguments: str) -> Ended:
        monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
        capfd.readouterr()
        try:
            status = main(arguments)
        except SystemExit as ended:  # how argparse ends after help
            status = int(str(ended.code))
        return Ended(status, *capfd.readouterr())

    yield call
    for own in ("stranger", "my_router", "my_groups"):
        sys.modules.pop(own, None)
