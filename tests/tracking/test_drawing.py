"""What goes wrong with pictures does not end a run."""

import sys
from pathlib import Path

import pytest
from trainers import run, step_of

from makemoe.tracking.pictures import RouterPictures


@pytest.mark.filterwarnings("ignore")  # Lightning advises
def test_a_run_goes_on_without_pictures_if_matplotlib_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "makemoe.pictures", None)
    run(tmp_path, RouterPictures(tmp_path), max_steps=4, val_check_interval=2)
    assert step_of(tmp_path / "last.ckpt") == 4
    assert capsys.readouterr().err.count("no pictures, because matplotlib cannot be used") == 1
