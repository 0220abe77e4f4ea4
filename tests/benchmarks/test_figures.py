import json
from pathlib import Path

import pytest

from benchmarks.figures import goals, muon, newest, pages, replaced, single
from benchmarks.report import Goal, Result

FAST = Result("step", "float32", 50.0, "plain", 200.0, goal=Goal(">=", 5))
SLOW = Result("step", "bf16", 90.0, "plain", 100.0, goal=Goal(">=", 5))
SHARE = Result("metrics", "", 1.0, "step", 100.0, goal=Goal("<=", 2, "%"), judged=1.0)


def test_the_pages_show_the_results() -> None:
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, "python -m benchmarks.figures mends this"


def measure(folder: Path, name: str, row: str, *results: Result) -> None:
    """A file of results with one row."""
    about = {"measured": f"{name[-10:]}T01:02:03+00:00", "threads": 2}
    lines = {"results": [result.as_json() for result in results]}
    (folder / f"{name}.json").write_text(json.dumps({"rows": {row: about | lines}}))


def test_the_newest_measurement_of_each_machine_counts(tmp_path: Path) -> None:
    measure(tmp_path, "one-2-cores-2026-01-01", "step", FAST)
    measure(tmp_path, "one-2-cores-2026-02-01", "step", SLOW)
    measure(tmp_path, "one-2-cores-2026-03-01", "step", Result("step", note="failed: no memory"))
    measure(tmp_path, "one-2-cores-2026-04-01", "other", FAST)
    measure(tmp_path, "one-2-cores-2026-05-01-quick", "step", FAST)
    measure(tmp_path, "two-2-cores-2026-01-01", "step", FAST)
    found = newest(tmp_path, "step")
    assert {name: row["results"][0]["ours"] for name, row in found.items()} == {
        "one-2-cores": 90.0,
        "two-2-cores": 50.0,
    }


def test_a_step_of_muon_stands_beside_those_of_adamw_and_of_torch_s_muon(tmp_path: Path) -> None:
    assert muon(tmp_path) == ""
    adamw = Result("Muon, 9 M weights", "float32", 12.0, "AdamW", 3.0, note="9.0% of a step")
    singly = Result("Muon, 9 M weights", "float32", 12.0, "torch's Muon", 240.0)
    rounded = Result("Muon, 9 M weights", "bfloat16", 5.0, "torch's Muon", 240.0)
    measure(tmp_path, "one-2-cores-2026-01-01", "optimizer", adamw, singly, rounded)
    assert muon(tmp_path).splitlines()[2:] == [
        "| 9 M weights | 12 ms | 5 ms | 3 ms | 240 ms | 9.0% of a step "
        "| one-2-cores, 2 threads, 2026-01-01 |"
    ]


def test_rows_that_are_measured_alone_stand_with_their_machine_and_date(tmp_path: Path) -> None:
    assert single(("step",), tmp_path) == ""
    measure(tmp_path, "one-2-cores-2026-01-01", "step", SLOW)
    measure(tmp_path, "one-2-cores-2026-02-01", "step", FAST, SHARE)
    measure(tmp_path, "two-2-cores-2026-01-01", "other", SLOW)
    assert single(("other", "step"), tmp_path).splitlines()[2:] == [
        "| step | 90 ms | 100 ms, plain | >= 5x: 1.11x, not reached | two-2-cores, 2026-01-01 |",
        "| step | 50 ms | 200 ms, plain | >= 5x: 4.00x, not reached | one-2-cores, 2026-02-01 |",
        "| metrics | 1 ms | 100 ms, step | <= 2 %: 1.00 %, reached | one-2-cores, 2026-02-01 |",
    ]


def test_machines_stand_side_by_side_with_what_is_judged() -> None:
    lines = goals({"one": [FAST.as_json(), SHARE.as_json()], "two": [SLOW.as_json()]}).splitlines()
    assert lines[2:] == [
        "| step | float32 / bf16 | plain | >= 5x | 4.00x, not reached | 1.11x, not reached |",
        "| metrics | | step | <= 2 % | 1.00 %, reached | |",
    ]


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(AssertionError, match="no marks for goals"):
        replaced("a page", {"goals": "a table"})
