import pytest

from benchmarks.figures import DOC, blocks, goals, replaced
from benchmarks.report import Goal, Result

FAST = Result("step", "float32", 50.0, "plain", 200.0, goal=Goal(">=", 5))
SLOW = Result("step", "bf16", 90.0, "plain", 100.0, goal=Goal(">=", 5))
SHARE = Result("metrics", "", 1.0, "step", 100.0, goal=Goal("<=", 2, "%"), judged=1.0)


def test_the_page_about_speed_shows_the_results() -> None:
    page = DOC.read_text(encoding="utf-8")
    assert page == replaced(page, blocks()), "python -m benchmarks.figures mends this"


def test_machines_stand_side_by_side_with_what_is_judged() -> None:
    lines = goals({"one": [FAST.as_json(), SHARE.as_json()], "two": [SLOW.as_json()]}).splitlines()
    assert lines[2:] == [
        "| step | float32 / bf16 | plain | >= 5x | 4.00x, not reached | 1.11x, not reached |",
        "| metrics | | step | <= 2 % | 1.00 %, reached | |",
    ]


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(AssertionError, match="no marks for goals"):
        replaced("a page", {"goals": "a table"})
