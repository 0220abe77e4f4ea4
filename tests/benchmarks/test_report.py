import json
from pathlib import Path

import pytest

from benchmarks.report import Goal, Result, table, write

FAST = Result("step", "float32", 50.0, "plain", 200.0, goal=Goal(">=", 5), peak_mb=(10.0, None))
RATE = Result("sampling", "float32", 2000.0, "plain", 100.0, "tokens/s", Goal(">=", 20))
TWIN = Result("twin", "bf16", 110.0, "dense", 100.0, goal=Goal("<=", 1.2), longer=True)
FAILED = Result("predict", note="failed: no such file")


def test_ratios_say_how_many_times_as_fast_or_as_long() -> None:
    assert [result.ratio for result in (FAST, RATE, TWIN)] == [4.0, 20.0, 1.1]


def test_goals_are_judged_as_they_stand() -> None:
    assert [r.reached for r in (FAST, RATE, TWIN, FAILED)] == [False, True, True, None]


def test_the_table_holds_every_result() -> None:
    lines = table([FAST, FAILED, RATE, TWIN]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["step", "predict:", "sampling", "twin"]
    assert "not reached" in lines[1]
    assert "10 / ?" in lines[1]
    assert "failed: no such file" in lines[2]
    assert "1.10x as long" in lines[4]


def test_a_row_run_alone_leaves_the_others_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "here" / "machine.json"
    write(path, {"measured": "then"}, {"step": [FAST], "predict": [FAILED]})
    write(path, {"measured": "now"}, {"predict": [TWIN]})
    rows = json.loads(path.read_text())["rows"]
    assert rows["step"]["measured"] == "then"
    assert rows["step"]["results"][0]["reached"] is False
    assert rows["predict"]["results"][0]["ratio"] == pytest.approx(1.1)
