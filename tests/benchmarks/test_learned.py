import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from benchmarks.figures import replaced
from benchmarks.learned import DOC, RECIPES, blocks, differences, keep, kept, loss, recipes

LOSSES = (1.5, 1.6, 1.75)


def variant(name: str, *losses: float) -> dict[str, Any]:
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
        "parameters": 8_000,
        "active_parameters": 3_000,
        "tokens": 2_560_000,
        "steps": 2_500,
        "final_val_loss": found,
        "best_val_loss": found,
        "seconds": 90.0,
        "runs": [
            {
                "seed": seed,
                "status": "finished",
                "folder": "where/it/was",
                "curve": {"step": [1], "val_loss": [one]},
            }
            for seed, one in enumerate(losses)
        ],
    }


def comparison(tmp_path: Path, name: str, *variants: dict[str, Any]) -> Path:
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    (folder / "compare.json").write_text(json.dumps({"equal": "tokens", "variants": variants}))
    return folder


def test_the_page_about_results_shows_what_is_kept() -> None:
    page = DOC.read_text(encoding="utf-8")
    assert page == replaced(page, blocks(kept())), "python -m benchmarks.learned mends this"


def test_every_recipe_that_is_kept_is_a_config() -> None:
    assert all((DOC.parents[1] / "configs" / f"{name}.yaml").is_file() for name, _ in RECIPES)


def test_what_is_kept_has_a_date_and_a_machine_and_no_folder(tmp_path: Path) -> None:
    path = keep(comparison(tmp_path, "laptop", variant("a", *LOSSES)), tmp_path / "results")
    content = path.read_text()
    assert path.name == "laptop.json"
    assert "where/it/was" not in content
    assert json.loads(content).keys() > {"measured", "machine", "torch", "variants"}


@pytest.mark.parametrize(("losses", "verdict"), [((1.5, 1.6), "reached"), ((1.6,), "not reached")])
def test_a_recipe_is_judged_by_the_mean_of_its_last_losses(
    tmp_path: Path, losses: tuple[float, ...], verdict: str
) -> None:
    keep(comparison(tmp_path, "laptop", variant("laptop", *losses)), tmp_path)
    (line,) = recipes(kept(tmp_path)).splitlines()[2:]
    assert f"| 1.55, {verdict} |" in line
    assert "| 2.56 M |" in line
    assert "| 1.5 min |" in line


def test_a_loss_has_its_spread_and_its_seeds() -> None:
    assert loss(variant("a", *LOSSES)["final_val_loss"]) == "1.6167 ± 0.1258 (3 seeds)"
    assert loss(variant("a", 1.5)["final_val_loss"]) == "1.5000 (1 seed)"


def test_variants_are_sorted_by_their_difference_to_the_first() -> None:
    plain = {"variants": [variant("base", 1.5), variant("worse", 1.75), variant("better", 1.25)]}
    rows = [line.split("|") for line in differences(plain, "change").splitlines()[2:]]
    assert [(row[1].strip(), row[4].strip()) for row in rows] == [
        ("base", ""),
        ("better", "-0.2500"),
        ("worse", "+0.2500"),
    ]
