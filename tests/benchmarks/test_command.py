import json
from pathlib import Path

import pytest

import benchmarks.__main__ as command
from benchmarks import trainer
from benchmarks.equality import NotEqualError
from benchmarks.measure import Bench
from benchmarks.report import Result


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    # Done in test_equality.py.
    monkeypatch.setattr(command, "check_models", lambda device: None)


def good(bench: Bench) -> list[Result]:
    """A row that works."""
    return [Result("good work", ours=1.0, against="plain", theirs=2.0)]


def bad(bench: Bench) -> list[Result]:
    """A row that does not."""
    raise ValueError("no luck\nat all")


def results(folder: Path) -> dict[str, list[dict[str, object]]]:
    (path,) = folder.glob("*.json")
    return {k: v["results"] for k, v in json.loads(path.read_text())["rows"].items()}


def test_one_row_is_measured_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "STEPS", 10)
    assert command.main(["--row", "trainer", "--seconds", "0", "--results", str(tmp_path)]) == 0
    assert "Trainer, a step of a near-zero model" in capsys.readouterr().out
    line, alone = results(tmp_path)["trainer"]
    assert line["note"].startswith("overhead "), line["note"]
    assert line["reached"] in (True, False)
    assert alone["reached"] is None


def test_a_row_that_fails_says_why_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ON_ANY_DEVICE", (bad,))
    monkeypatch.setattr(command, "ON_CPU", (good,))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command.main(["--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "bad: failed: no luck\n" in out
    assert "bad on a GPU: not measured (no CUDA device)" in out
    assert "2.00x" in out
    assert list(results(tmp_path)) == ["bad", "good", "bad on a GPU"]


def test_nothing_is_timed_against_a_baseline_that_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(device: str) -> None:
        raise NotEqualError("the baseline differs")

    monkeypatch.setattr(command, "check_models", differs)
    assert command.main(["--results", str(tmp_path)]) == 1
    assert "not timed: the baseline differs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
