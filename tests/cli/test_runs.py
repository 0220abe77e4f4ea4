"""`makemoe runs`, from files of all kinds."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import MAKEMOE, Ended, listing

from makemoe.cli.runs import age, shortened
from makemoe.locks import Lock
from makemoe.run import LOCK

Call = Callable[..., Ended]


def leave(name: str, metrics: str | bytes = "", config: str = "", ago: float = 0) -> Path:
    """A run's files, written so many seconds ago."""
    folder = Path("checkpoints") / name
    folder.mkdir(parents=True)
    content = metrics if isinstance(metrics, bytes) else metrics.encode()
    (folder / "metrics.csv").write_bytes(content)
    (folder / "config.yaml").write_text(config)
    for file in folder.iterdir():
        os.utime(file, (time.time() - ago,) * 2)
    return folder


def told(makemoe: Call) -> list[dict[str, object]]:
    ended = makemoe("runs", "--json")
    assert (ended.status, ended.err) == (0, "")
    runs: list[dict[str, object]] = json.loads(ended.out)
    return runs


def test_a_run_that_was_trained_is_told_with_its_best_loss(makemoe: Call, copied: Path) -> None:
    (run,) = told(makemoe)
    assert run["name"] == "tiny"
    assert run["folder"] == "checkpoints/tiny"
    assert (run["step"], run["max_steps"], run["running"]) == (20, 20, False)
    loss = float(makemoe("validate", "--ckpt_path=best").out.split()[1])
    assert run["best_val_loss"] == pytest.approx(loss, abs=6e-5)
    assert run["best_step"] == 20
    lines = makemoe("runs").out.splitlines()
    assert lines[0].split() == ["run", "steps", "best", "val_loss", "age"]
    assert lines[1].split()[:5] == ["tiny", "20", "of", "20", f"{loss:.4f}"]


def test_the_newest_run_comes_first_and_the_best_loss_is_its_least(makemoe: Call) -> None:
    leave("old", "step,val_loss\n5,1.5\n10,1.25\n15,\n", "trainer:\n  max_steps: 30\n", 90 * 60)
    leave("new", "step,train_loss\n5,3.0\n", "seed: 1\ntrainer: {max_steps: 7}\n", 310)
    Path("checkpoints/nothing").mkdir()
    new, old = told(makemoe)
    assert (new["name"], new["step"], new["max_steps"]) == ("new", 5, 7)
    assert new["best_val_loss"] is None
    assert (old["name"], old["step"], old["max_steps"]) == ("old", 15, 30)
    assert (old["best_val_loss"], old["best_step"]) == (1.25, 10)
    assert makemoe("runs").out.splitlines()[1:] == [
        "new    5 of 7              -  5 min",
        "old  15 of 30         1.2500    1 h",
    ]


def test_whether_a_run_is_being_trained_is_asked_without_a_trace(makemoe: Call) -> None:
    for name in ("free", "left", "held"):
        leave(name)
    Path("checkpoints/left", LOCK).touch()
    lock = Lock(Path("checkpoints/held", LOCK))
    assert lock.take()
    before = listing(Path())
    assert {run["name"]: run["running"] for run in told(makemoe)} == {
        **{"free": False, "left": False},
        "held": True,
    }
    assert listing(Path()) == before
    (line,) = [line for line in makemoe("runs").out.splitlines() if "running" in line]
    assert line.startswith("held")
    lock.release(remove=True)


@pytest.mark.parametrize(
    "metrics",
    [
        b"",
        b"\0\xff\xfe\n\n,,,\n",
        b"step\n",
        b"a,b\n1,2\n",
        b"step,val_loss\n" + b"9" * 5000 + b",1\n-1,2\nx,y\n,\n",
        b'step,val_loss\n"' + b"a" * 200_000,
        b"step,val_loss\n3,nan\n3,inf\n",
        os.urandom(3000),
    ],
)
@pytest.mark.parametrize(
    "config", ["[" * 5000, "trainer: 5", "trainer:\n  max_steps: -1", "trainer:\nmax_steps: 3"]
)
def test_damaged_files_break_nothing(makemoe: Call, metrics: bytes, config: str) -> None:
    leave("bad", metrics, config)
    leave("good", "step,val_loss\n5,1.5\n", "trainer:\n  # of all\n  max_steps: 30\n", 90)
    bad, good = told(makemoe)
    assert (bad["best_val_loss"], bad["max_steps"]) == (None, None)
    assert (good["best_val_loss"], good["max_steps"]) == (1.5, 30)
    assert makemoe("runs").status == 0


def test_what_is_no_file_is_not_read(makemoe: Call) -> None:
    folder = leave("good", "step,val_loss\n5,1.5\n")
    (folder / "config.yaml").unlink()
    os.mkfifo(folder / "config.yaml")
    bad = Path("checkpoints/bad")
    bad.mkdir()
    os.mkfifo(bad / "metrics.csv")
    (bad / "config.yaml").touch()
    (bad / LOCK).mkdir()
    Path("checkpoints/loop").symlink_to("loop")
    assert {str(run["name"]) for run in told(makemoe)} == {"good", "bad"}


@pytest.mark.parametrize("root", ["checkpoints", "here/there", "file"])
def test_where_there_are_no_runs_a_line_says_so(makemoe: Call, root: str) -> None:
    Path("file").touch()
    ended = makemoe("runs", "--run.root", root)
    assert ended.status == 0
    assert ended.out.startswith(f"no runs in {root}/ yet; start one: makemoe fit --config ")
    assert makemoe("runs", "--run.root", root, "--json").out == "[]\n"
    assert not Path(root).is_dir()


def test_lines_fit_a_terminal_of_80_columns(makemoe: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    leave("a" * 120 + "-12", "step,val_loss\n100000,1.5\n", "trainer:\n  max_steps: 200000\n")
    leave("a\nb\x1b[31m")
    Lock(Path("checkpoints", "a" * 120 + "-12", LOCK)).take()
    lines = makemoe("runs").out.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert any("…aaa-12  100000 of 200000" in line for line in lines)
    assert any(line.startswith("a?b?[31m ") for line in lines)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (86400 * 400, "400 d")],
)
def test_an_age_is_in_its_largest_unit(seconds: int, said: str) -> None:
    assert age(seconds) == said


def test_a_name_that_fits_is_whole() -> None:
    assert shortened("quickstart-2", 12) == "quickstart-2"
    assert shortened("quickstart-2", 11) == "quick…art-2"


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", r"\u65e5"), ("utf-8", "日")])
def test_a_name_that_the_terminal_cannot_show_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    leave("日")
    done = subprocess.run([MAKEMOE, "runs"], capture_output=True, check=True)
    assert done.stdout.decode(encoding).splitlines()[1].split()[0] == shown


def test_runs_imports_neither_torch_nor_lightning(tmp_path: Path) -> None:
    code = (
        "import sys; from makemoe.cli import main; main(['runs']);"
        "print({'torch', 'lightning', 'numpy', 'jsonargparse'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[1:] == ["set()"]


@pytest.mark.parametrize("flags", [("--run.rot", "x"), ("loose",)])
def test_options_that_cannot_be(makemoe: Call, flags: tuple[str, ...]) -> None:
    ended = makemoe("runs", *flags)
    assert ended.status == 2
    assert "unknown option" in ended.error
