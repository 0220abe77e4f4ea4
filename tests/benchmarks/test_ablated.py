"""What the ablations come to."""

from pathlib import Path

import pytest

from benchmarks.ablated import ABLATIONS, ablations, effects
from makemoe.errors import DataError
from tests.comparisons import cells, stored, variant


def test_ablations_come_in_portions_and_are_compared_with_the_recipe(tmp_path: Path) -> None:
    found = stored(
        tmp_path,
        seed_budget=[variant("seed_budget", 1.5, 1.6, 1.7)],
        ablations_1=[
            variant("config=relu.yaml", 1.6, 1.7, 1.8),
            variant("config=no_qk_norm.yaml", 1.5),
        ],
        ablations_2=[variant("config=tied_embeddings.yaml", 1.45, 1.65, 1.85)],
    )
    page = ablations(found)
    assert [(row[0].partition(" ([")[0], row[3]) for row in cells(page)] == [
        ("none", ""),
        ("No QK-norm", "+0.0000"),
        ("Tied embeddings", "+0.0500 ± 0.1000"),
        ("ReLU instead of squared ReLU", "+0.1000 ± 0.0000"),
    ]
    assert page.startswith("## Ablations\n")
    assert "[ablations_1.json](results/ablations_1.json), [ablations_2.json]" in page
    told = " ".join(page.split())
    assert "--seeds 3" in told
    assert "more than 2.5 times its deviation" in told
    assert (
        "A row of one seed has no deviation; the losses without a change have one of 0.1000" in told
    )
    assert (
        f"{len(list(ABLATIONS.glob('*.yaml'))) - 3} changes of benchmarks/ablations are not" in told
    )


def test_the_seeds_of_an_ablation_may_be_in_several_portions(tmp_path: Path) -> None:
    one, other = variant("config=relu.yaml", 1.6), variant("config=relu.yaml", 1.9)
    other["runs"][0]["seed"] += 1
    base = variant("seed_budget", 1.5, 1.6)
    found = stored(tmp_path, seed_budget=[base], ablations_1=[one], ablations_2=[other])
    [_, row] = cells(ablations(found))
    assert row[2:] == ["1.7500 ± 0.2121 (2 seeds)", "+0.2000 ± 0.1414"]


def test_a_seed_of_an_ablation_is_in_one_portion_only(tmp_path: Path) -> None:
    one = variant("config=relu.yaml", 1.6)
    found = stored(
        tmp_path, seed_budget=[variant("seed_budget", 1.5)], ablations_1=[one], ablations_2=[one]
    )
    with pytest.raises(DataError, match=r"config=relu\.yaml: seed 1337 is stored already"):
        ablations(found)


def test_ablations_need_the_recipe_and_their_files(tmp_path: Path) -> None:
    found = stored(tmp_path, ablations=[variant("config=gone.yaml", 1.6)])
    with pytest.raises(DataError, match=r"seed_budget\.json is missing"):
        ablations(found)
    found |= stored(tmp_path / "more", seed_budget=[variant("seed_budget", 1.5)])
    with pytest.raises(DataError, match=r"benchmarks/ablations has no gone\.yaml"):
        ablations(found)


def test_every_ablation_says_what_it_is_in_its_first_line() -> None:
    for path in ABLATIONS.glob("*.yaml"):
        assert path.read_text(encoding="utf-8").startswith("# "), path


def test_an_effect_is_seen_if_it_is_significant(tmp_path: Path) -> None:
    """The losses of three seeds deviate by 0.1, and so do the differences of three.

    4.30 standard errors are 0.6081 for one seed and 0.2483 for three differences.
    """
    found = stored(
        tmp_path,
        seed_budget=[variant("seed_budget", 1.5, 1.6, 1.7)],
        ablations=[
            variant("config=relu.yaml", 2.107),
            variant("config=swiglu.yaml", 2.109),
            variant("config=dropout.yaml", 1.649, 1.849, 2.049),
            variant("config=biases.yaml", 1.152, 1.352, 1.552),
            variant("config=layer_norm.yaml", 1.151, 1.351, 1.551),
        ],
    )
    judged = [
        (one.line.rpartition(": ")[2], one.is_seen(), one.is_better()) for one in effects(found)
    ]
    assert judged == [
        ("-0.2490 ± 0.1000", True, True),
        ("-0.2480 ± 0.1000", False, False),
        ("+0.2490 ± 0.1000", True, False),
        ("+0.6070", False, False),
        ("+0.6090", True, False),
    ]


def test_of_a_recipe_with_one_seed_no_effects_are_told(tmp_path: Path) -> None:
    found = stored(
        tmp_path,
        seed_budget=[variant("seed_budget", 1.5)],
        ablations=[variant("config=relu.yaml", 1.5)],
    )
    assert effects(found) == []
