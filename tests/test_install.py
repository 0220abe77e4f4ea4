"""`make install` shows what pip does, and ends as pip ends."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / ".ci" / "install.py"
SAID = """\
Collecting torch>=2.11 (from makemoe==0.1.0)
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (30 kB)
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (620.5 MB)
Processing /some/where/tqdm-4.70.1-py3-none-any.whl (from makemoe==0.1.0)
  Using cached six-1.17.0-py2.py3-none-any.whl (11 kB)
Installing collected packages: six, tqdm, torch, makemoe
"""
FAILED = "ERROR: Could not find a version that satisfies the requirement torch"


def installed(folder: Path, status: int) -> "subprocess.CompletedProcess[str]":
    """The program with a pip that says the above, its arguments, and ends with a status."""
    (folder / ".venv").mkdir()
    (folder / "pip.py").write_text(
        f"import sys\nprint({SAID!r}, end='')\nprint(sys.argv[1:])\n"
        f"if {status}:\n    print({FAILED!r}, file=sys.stderr)\nsys.exit({status})\n"
    )
    return subprocess.run(
        [sys.executable, str(PROGRAM), "plots"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_there_is_a_line_per_package(tmp_path: Path) -> None:
    done = installed(tmp_path, 0)
    assert (done.returncode, done.stderr) == (0, "")
    _, *lines, last = done.stdout.splitlines()
    assert lines == [
        "    1 torch 2.13.0 (620.5 MB)",
        "    2 tqdm 4.70.1",
        "    3 six 1.17.0 (11 kB)",
        "  unpacking 4 packages",
    ]
    assert last.startswith("Installed 4 packages in ")
    assert "'-e', '.[plots]'" in (tmp_path / ".venv" / "pip.log").read_text()


def test_a_failure_of_pip_is_shown_and_its_status_kept(tmp_path: Path) -> None:
    done = installed(tmp_path, 7)
    assert done.returncode == 7
    assert done.stderr == f"{FAILED}\n"
    assert "Installed" not in done.stdout
