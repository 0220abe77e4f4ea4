"""The recipes keep to their budgets, and their parts and schedules agree."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import Ended
from settings import net_of

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = ("seed_budget", "seed_tokens", "laptop", "shakespeare", "quickstart")
PARTS = ("norm", "positions", "attention", "init", "router", "balancers", "param_groups")
SYMBOLS = 65  # of tiny Shakespeare

ABLATIONS = sorted((CONFIGS.parent / "benchmarks" / "ablations").glob("*.yaml"))

Settings = dict[str, Any]
Call = Callable[..., Ended]


@pytest.fixture
def settings(makemoe: Call, recipe: str) -> Settings:
    return printed(makemoe, CONFIGS / f"{recipe}.yaml")


def printed(makemoe: Call, *configs: Path) -> Settings:
    """The settings that configs make, one after another."""
    words = [f"--config={config}" for config in configs]
    ended = makemoe("fit", *words, "--data.corpus=sample", "--print_config")
    assert ended.status == 0, ended.err
    found: Settings = yaml.safe_load(ended.out)
    return found


@pytest.mark.parametrize("recipe", ["seed_budget", "seed_tokens"])
def test_the_tutorial_s_budget_is_kept(settings: Settings) -> None:
    assert net_of(settings["model"], SYMBOLS).count_parameters().total <= 9.0e6
    tokens = settings["data"]["batch_size"] * settings["model"]["block_size"]
    assert settings["trainer"]["max_steps"] * tokens == 2_560_000


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_s_schedule_ends_with_its_last_step_which_is_validated(settings: Settings) -> None:
    steps, every = settings["trainer"]["max_steps"], settings["trainer"]["val_check_interval"]
    assert settings["model"]["lr_scheduler"]["init_args"]["total_steps"] == steps
    assert steps % every == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_recipes_have_the_same_parts(recipe: str) -> None:
    one, other = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["model"]
        for name in (recipe, "laptop")
    )
    assert {part: one[part] for part in PARTS} == {part: other[part] for part in PARTS}
    assert one["experts"] | {"init_args": {}} == other["experts"] | {"init_args": {}}
    assert one["optimizer"]["class_path"] == other["optimizer"]["class_path"]


def test_the_windows_of_the_seed_s_budget_are_those_of_the_tutorial() -> None:
    mine, tutorial = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["model"]
        for name in ("seed_budget", "makemoe")
    )
    assert mine["block_size"] == tutorial["block_size"] == 32


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_changes_the_recipe_s_model_and_keeps_its_budget(
    makemoe: Call, ablation: Path
) -> None:
    recipe = CONFIGS / "seed_budget.yaml"
    base, changed = printed(makemoe, recipe), printed(makemoe, recipe, ablation)
    assert base["model"] != changed["model"]
    assert base | {"model": {}, "config": None} == changed | {"model": {}, "config": None}
    one, other = (net_of(s["model"], SYMBOLS).count_parameters() for s in (base, changed))
    assert other.total == pytest.approx(one.total, rel=0.01)
    assert other.active == pytest.approx(one.active, rel=0.03)
