"""Comparisons as `makemoe compare` writes them, with made-up losses."""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.kept import keep, kept

LOSSES = (1.5, 1.6, 1.75)
FIRST = 1337


def variant(name: str, *losses: float, **more: Any) -> dict[str, Any]:
    """A variant as `makemoe compare` writes it, with one validation per seed."""
    found = {
        "mean": mean(losses),
        "spread": stdev(losses) if len(losses) > 1 else None,
        "n": len(losses),
    }
    return {
        "name": name,
        "folder": "where/it/was",
        "options": ["--data.corpus=where/it/was"],
        "parameters": 8_000_000,
        "active_parameters": 3_000_000,
        "flops_per_token": 18_000_000,
        "tokens": 2_560_000,
        "steps": 2_500,
        "twin": None,
        "final_val_loss": found,
        "best_val_loss": found,
        "seconds": 90.0,
        "runs": [
            {
                "seed": seed,
                "status": "finished",
                "seconds": 90.0,
                "folder": "where/it/was",
                "curve": {"step": [1], "val_loss": [one]},
            }
            for seed, one in enumerate(losses, FIRST)
        ],
        **more,
    }


def comparison(tmp_path: Path, name: str, *variants: dict[str, Any], **more: Any) -> Path:
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    plain = {"equal": "tokens", "variants": variants, **more}
    (folder / "compare.json").write_text(json.dumps(plain))
    return folder


def stored(tmp_path: Path, **comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    """Comparisons as they are read back."""
    for name, variants in comparisons.items():
        keep(comparison(tmp_path, name, *variants), tmp_path)
    return kept(tmp_path)


def cells(table: str) -> list[list[str]]:
    """The cells of a table in Markdown, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
