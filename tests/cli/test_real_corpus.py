"""The faithful recipe on the text it is meant for."""

import os
from pathlib import Path

import pytest
from processes import fit

CORPUS = os.environ.get("MAKEMOE_TINYSHAKESPEARE")
RECIPES = Path(__file__).parents[2] / "configs"


@pytest.mark.skipif(not CORPUS, reason="MAKEMOE_TINYSHAKESPEARE does not name the text")
@pytest.mark.parametrize("recipe", ["makemoe", "makemoe_capacity"])
def test_the_recipe_has_the_published_size_and_learns(tmp_path: Path, recipe: str) -> None:
    fit(
        tmp_path,
        f"--config={RECIPES / recipe}.yaml",
        f"--data.corpus={CORPUS}",
        "--data.eval_train_split=false",
        "--trainer.max_steps=20",
        "--trainer.val_check_interval=10",
        "--trainer.limit_val_batches=4",
        "--run.sample_tokens=0",
    )
    told = (tmp_path / "stderr.txt").read_text()
    assert "8,996,545 parameters, 2,674,369 active" in told
    assert "1,003,854 tokens to train on, 111,540 to validate, 65 symbols" in told
    lines = (tmp_path / "checkpoints" / recipe / "metrics.csv").read_text().splitlines()
    at = lines[0].split(",").index("val_loss")
    first, second = (float(line.split(",")[at]) for line in lines[1:] if line.split(",")[at])
    assert second < first < 5.0
