"""What is stored of a sweep, and how its page shows it."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import searched
from makemoe.errors import DataError

SPACE = {"model.top_k": {}, "model.optimizer.lr": {}}


def trial(number: int, loss: float, top_k: int, state: str = "complete") -> dict[str, Any]:
    values = {"model.top_k": top_k, "model.optimizer.lr": 0.001 * (number + 1)}
    sizes = {"width": 64 // top_k, "parameters": 1_250_000, "tokens": 5_000}
    return {"number": number, "state": state, "values": values, "loss": loss} | sizes


def folder_of(tmp_path: Path, *trials: dict[str, Any]) -> Path:
    folder = tmp_path / "sweep-laptop"
    folder.mkdir()
    plain = {
        "command": "makemoe sweep --config=laptop --data.corpus=/where/it/was.txt",
        "searched": {"space": SPACE},
        "importances": {"model.top_k": 0.75, "model.optimizer.lr": 0.25},
        "trials": list(trials),
    }
    (folder / "sweep.json").write_text(json.dumps(plain))
    (folder / "sweep.png").write_bytes(b"a picture")
    return folder


def test_the_page_shows_what_is_kept() -> None:
    kept = searched.DOC.read_text(encoding="utf-8")
    assert kept == searched.page(), "python -m benchmarks.searched mends this"


def test_the_best_trials_come_first_and_each_small_option_has_a_table(tmp_path: Path) -> None:
    losses = (1.6, 1.5, 1.7, 1.55, 1.65, 1.8)
    trials = [trial(n, loss, 1 + n % 2) for n, loss in enumerate(losses)]
    folder = folder_of(tmp_path, *trials, trial(6, 1.9, 2, "pruned"))
    kept, picture = tmp_path / "kept.json", tmp_path / "kept.png"
    searched.keep(folder, kept, picture)
    assert picture.read_bytes() == b"a picture"
    assert "where" not in kept.read_text()
    text = searched.searched(kept)
    assert "6 trials were trained to their ends, 1 were pruned; 5,000 tokens each" in text
    assert "Importance: top_k 75%, lr 25%." in text
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[1] == ["1", "2", "0.002", "32", "1.25 M", "1.5000"]
    # Of top_k 1: 1.6, 1.65 and 1.7; of top_k 2: 1.5, 1.55 and 1.8.
    assert ["1", "3", "1.6000", "1.6500"] in cells
    assert ["2", "3", "1.5000", "1.6167"] in cells


def test_a_sweep_that_has_not_ended_is_not_kept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, trial(0, 1.6, 1), trial(1, 1.7, 1, "waiting"))
    with pytest.raises(DataError, match="has trials that have not ended"):
        searched.keep(folder, tmp_path / "kept.json", tmp_path / "kept.png")
    with pytest.raises(DataError, match="is not the folder of a sweep"):
        searched.keep(tmp_path, tmp_path / "kept.json", tmp_path / "kept.png")


def test_what_was_not_searched_is_left_out(tmp_path: Path) -> None:
    assert searched.searched(tmp_path / "none.json") == ""
