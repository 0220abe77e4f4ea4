"""Five kills, always at the same moments: `make soak` tries fifty."""

from pathlib import Path

import pytest
import torch

from makemoe.checkpoint.format import write
from soak.__main__ import tried
from soak.differences import differences, unlike
from soak.kinds import KINDS, Kind
from soak.report import summary, table, wrong
from soak.trial import killed

NAMED = {kind.name: kind for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "blows"),
    [
        # One process takes few milliseconds per step, and must not end before the last blow.
        pytest.param(NAMED["one process"]._replace(steps=400), 2, id="one process"),
        pytest.param(NAMED["experts"]._replace(steps=90), 3, id="experts"),
    ],
)
def test_a_killed_run_ends_as_one_that_nothing_disturbed(
    tmp_path: Path, kind: Kind, blows: int
) -> None:
    record = killed(kind, tmp_path, seed=5, blows=blows)
    assert len(record["blows"]) == blows
    assert wrong([record]) == []


def test_a_difference_of_one_bit_is_found() -> None:
    weights = torch.ones(3)
    other = weights.clone()
    other[1] = torch.nextafter(other[1], torch.tensor(2.0))
    held = {"state_dict": {"a": weights}, "steps": [1, {"lr": 0.1}]}
    assert (
        list(unlike(held, {"state_dict": {"a": weights.clone()}, "steps": [1, {"lr": 0.1}]})) == []
    )
    assert list(unlike(held, held | {"state_dict": {"a": other}})) == ["/state_dict/a"]
    assert list(unlike(held, held | {"steps": [1, {"lr": 0.2}]})) == ["/steps/1/lr"]
    assert list(unlike(held, held | {"more": 1})) == ["/more"]


def test_runs_with_other_losses_or_samples_differ(tmp_path: Path) -> None:
    for run, loss, text in (("a", "1.5", "x"), ("b", "1.5", "x"), ("c", "1.6", "y")):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.csv").write_text(
            f"step,train_loss,tokens_per_second\n1,{loss},{ord(run)}\n"
        )
        (tmp_path / run / "samples.txt").write_text(text)
        for name in ("last.ckpt", "best.ckpt"):
            held = {"makemoe": {"format": 1}, "state_dict": {}, "callbacks": {}}
            write(held, tmp_path / run / name)
    assert differences(tmp_path / "a", tmp_path / "b") == []
    assert differences(tmp_path / "a", tmp_path / "c") == [
        "metrics.csv: train_loss of step 1 is '1.6', not '1.5'",
        "samples.txt",
    ]


def test_runs_in_the_log_are_not_repeated_and_those_of_other_seeds_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int]] = []

    def killed(kind: Kind, folder: Path, seed: int, blows: int) -> dict[str, object]:
        ran.append((kind.name, seed))
        found = [{"wrong": [], "who": ""}] * blows
        return {"kind": kind.name, "seed": seed, "blows": found, "differences": []}

    monkeypatch.setattr("soak.__main__.killed", killed)
    kinds, log = (NAMED["one process"], NAMED["experts"]), tmp_path / "log.jsonl"

    def runs(wanted: int, first: int) -> list[tuple[str, int]]:
        return [(record["kind"], record["seed"]) for record in tried(kinds, wanted, first, log)]

    first = [("one process", 1), ("experts", 1), ("one process", 2)]
    assert runs(12, first=1) == ran == first
    assert runs(12, first=1) == ran == first
    other = [("one process", 2), ("experts", 2), ("one process", 3)]
    assert runs(12, first=2) == other
    assert ran == [*first, *other[1:]]


def test_the_report_counts_kills_and_what_was_wrong() -> None:
    blow = {"who": "one process", "writing": True, "ended_s": 2.34, "wrong": ["a traceback"]}
    record = {"kind": "DDP", "seed": 1, "blows": [blow, blow], "differences": [], "seconds": 9}
    figures = summary([record], seed=1)
    assert (figures["kills"], figures["differences"]) == (2, 0)
    assert "| DDP | 2 | 0 | 0 | 2 | 2.3 s | 0 |" in table(figures)
    assert wrong([record]) == ["DDP, seed 1: one process: a traceback"] * 2
