import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from makemoe.errors import CheckpointError, UsageError
from makemoe.search.folder import CompareFolder, choose, known_variants, variants_in
from makemoe.search.plan import Plan, Variant

VARIANT = Variant("a", "a", (), {"model": {"n_embd": 8}}, 10, 10, 60, 8, 10, 1)
OTHER = replace(VARIANT, name="a", settings={"model": {"n_embd": 16}})
THIRD = replace(VARIANT, name="c", folder="c")


def plan(*variants: Variant) -> Plan:
    return Plan(variants, (1,), "tokens")


def begun(path: Path, *variants: Variant) -> None:
    with CompareFolder(path) as folder:
        folder.write_plan(plan(*variants))


def test_the_same_comparison_finds_its_folder_again(tmp_path: Path) -> None:
    root = str(tmp_path)
    first = choose(plan(VARIANT), root, None, "compare-x")
    assert first == tmp_path / "compare-x"
    begun(first, VARIANT)
    second = choose(plan(OTHER), root, None, "compare-x")
    assert second == tmp_path / "compare-x-2"
    begun(second, OTHER)
    assert choose(plan(VARIANT), root, None, "compare-x") == first
    assert choose(plan(OTHER), root, None, "compare-x") == second
    assert known_variants(root, None, "compare-x") == [VARIANT, OTHER]


def test_a_comparison_is_found_although_one_before_it_was_removed(tmp_path: Path) -> None:
    root = str(tmp_path)
    for number, variant in (("", VARIANT), ("-2", OTHER), ("-10", THIRD)):
        begun(tmp_path / f"compare-x{number}", variant)
    shutil.rmtree(tmp_path / "compare-x")
    begun(tmp_path / "compare-x-y", VARIANT)
    assert choose(plan(OTHER), root, None, "compare-x") == tmp_path / "compare-x-2"
    assert choose(plan(THIRD), root, None, "compare-x") == tmp_path / "compare-x-10"
    assert choose(plan(VARIANT), root, None, "compare-x") == tmp_path / "compare-x"
    assert known_variants(root, None, "compare-x") == [OTHER, THIRD]


def test_a_comparison_can_grow(tmp_path: Path) -> None:
    path = tmp_path / "x"
    begun(path, VARIANT)
    assert choose(plan(VARIANT, THIRD), str(tmp_path), "x", "unused") == path
    begun(path, VARIANT, THIRD)
    begun(path, VARIANT)
    assert variants_in(path) == [VARIANT, THIRD]


def test_a_name_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "x", VARIANT)
    with pytest.raises(UsageError, match=r"holds a with other settings \(model.n_embd was 8, and"):
        choose(plan(OTHER), str(tmp_path), "x", "unused")
    with pytest.raises(UsageError, match="holds another comparison"):
        choose(plan(THIRD), str(tmp_path), "x", "unused")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "metrics.csv").touch()
    with pytest.raises(UsageError, match="already exists, and is no comparison"):
        choose(plan(THIRD), str(tmp_path), "y", "unused")


def test_two_processes_do_not_train_one_comparison(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with CompareFolder(path):
        with pytest.raises(CheckpointError, match="is being trained by another process"):
            CompareFolder(path).__enter__()
        assert path.exists()
    assert not path.exists()  # nothing was written there
