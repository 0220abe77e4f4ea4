"""What is stored of comparisons, and how the pages show it."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from benchmarks import learned
from benchmarks.goals import RECIPES, Recipe
from benchmarks.kept import change, keep, kept, without_folders
from benchmarks.learned import DOC
from benchmarks.page import differences, loss
from makemoe.data.windows import validation_begins
from makemoe.errors import DataError
from tests.comparisons import LOSSES, cells, comparison, stored, variant


def test_the_pages_show_what_is_kept() -> None:
    for path, text in learned.pages(kept()).items():
        assert path.read_text(encoding="utf-8") == text, "python -m benchmarks.learned mends this"


def test_every_recipe_that_is_kept_is_a_config() -> None:
    configs = DOC.parents[1] / "configs"
    assert all((configs / f"{recipe.name}.yaml").is_file() for recipe in RECIPES)


def test_what_is_kept_has_a_date_and_a_machine_and_no_folder(tmp_path: Path) -> None:
    command = "makemoe compare --config configs/laptop.yaml --data.corpus where/it/was"
    folder = comparison(tmp_path, "laptop", variant("a", *LOSSES), command=command)
    path = keep(folder, tmp_path / "results", note="It did not help.")
    content = path.read_text()
    assert path.name == "laptop.json"
    assert "where" not in content
    plain = json.loads(content)
    assert plain.keys() > {"measured", "machine", "torch", "variants"}
    assert plain["note"] == "It did not help."
    assert plain["command"] == "makemoe compare --config configs/laptop.yaml --data.corpus was"


def of_seed(seed: int, *names: str, loss: float = 1.5, **more: Any) -> list[dict[str, Any]]:
    """Variants with one run of a seed."""
    found = [variant(name, loss, **more) for name in names]
    for one in found:
        one["runs"][0] |= {
            "seed": seed,
            "final_val_bits_per_byte": loss / 2,
            "seconds": 60.0 * seed,
        }
    return found


def test_seeds_that_were_trained_later_are_added_to_the_others(tmp_path: Path) -> None:
    for number, (seed, last) in enumerate(((7, 1.5), (9, 1.75), (8, 1.6))):
        once = comparison(
            tmp_path / str(number),
            "laptop",
            *of_seed(seed, "a", loss=last),
            command=f"makemoe compare --seed {seed}",
        )
        keep(once, tmp_path, adds=number > 0)
    laptop = kept(tmp_path)["laptop"]
    (one,) = laptop["variants"]
    assert laptop["seeds"] == [7, 8, 9]
    assert laptop["command"].split(" && ") == [f"makemoe compare --seed {n}" for n in (7, 9, 8)]
    assert [run["curve"]["val_loss"] for run in one["runs"]] == [[1.5], [1.6], [1.75]]
    assert one["final_val_loss"]["mean"] == pytest.approx((1.5 + 1.6 + 1.75) / 3)
    assert one["final_val_loss"]["spread"] == pytest.approx(0.12583, abs=1e-5)
    assert one["final_val_bits_per_byte"]["mean"] == pytest.approx((1.5 + 1.6 + 1.75) / 6)
    assert one["final_val_loss"]["n"] == 3
    assert one["seconds"] == 480


@pytest.mark.parametrize(
    ("variants", "more", "words"),
    [
        (of_seed(7, "a"), "--seed 7 --jobs=2", "a: seed 7 is stored already"),
        (of_seed(8, "b"), "", "the variants b are not a"),
        (of_seed(8, "a", tokens=5), "", "a: tokens was 2,560,000, and is now 5"),
        (of_seed(8, "a"), "--model.top_k 2", "laptop --model.top_k 2 is not makemoe compare"),
    ],
)
def test_seeds_of_something_else_are_not_added(
    tmp_path: Path, variants: list[dict[str, Any]], more: str, words: str
) -> None:
    command = "makemoe compare --config laptop --seeds 2"
    keep(comparison(tmp_path / "1", "laptop", *of_seed(7, "a"), command=command), tmp_path)
    before = (tmp_path / "laptop.json").read_bytes()
    once = comparison(tmp_path / "2", "laptop", *variants, command=f"{command} {more}".strip())
    with pytest.raises(DataError, match=words):
        keep(once, tmp_path, adds=True)
    assert (tmp_path / "laptop.json").read_bytes() == before


def test_seeds_are_added_to_something(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"laptop\.json is missing: there is nothing to add"):
        keep(comparison(tmp_path, "laptop", *of_seed(7, "a")), tmp_path, adds=True)


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (
            "fit --data.corpus=../a/b.txt --config c/d.yaml",
            "fit --data.corpus=b.txt --config c/d.yaml",
        ),
        ("fit --config=/home/me/c.yaml --run.root /tmp/x", "fit --config=c.yaml --run.root x"),
        ("compare --vary config=/a/x.yaml,/b/y.yaml", "compare --vary config=x.yaml,y.yaml"),
        ("fit --vary 'model.norm=A,B(x=1)'", "fit --vary 'model.norm=A,B(x=1)'"),
    ],
)
def test_a_command_is_kept_without_folders_of_this_machine(command: str, kept: str) -> None:
    assert without_folders(command) == kept


@pytest.mark.parametrize(
    ("losses", "minutes", "verdict"),
    [
        ((1.5, 1.6), 3.0, "reached"),
        ((1.6,), 3.0, "not reached"),
        ((1.5, 1.6), 3.1, "not reached"),
    ],
)
def test_a_recipe_is_judged_by_the_mean_of_its_last_losses_within_its_budget(
    tmp_path: Path, losses: tuple[float, ...], minutes: float, verdict: str
) -> None:
    found = stored(tmp_path, laptop=[variant("laptop", *losses, seconds=60 * minutes)])
    (row,) = cells(learned.recipes(found))
    assert row[2:4] == ["2.56 M", "3 minutes"]
    assert row[5] == f"<= 1.55, {verdict}"
    assert row[7] == f"{minutes} min"


def test_a_recipe_with_too_many_parameters_or_tokens_does_not_reach_its_goal() -> None:
    small = Recipe("small", 2.0, parameters=8e6, tokens=2.56e6)
    assert small.budget == "8.0 M parameters, 2.56 M tokens"
    assert small.verdict(variant("a", 1.5)) == "reached"
    assert small.verdict(variant("a", 1.5, parameters=8_000_001)) == "not reached"
    assert small.verdict(variant("a", 1.5, tokens=2_560_001)) == "not reached"


def test_the_readme_has_sizes_tokens_and_losses_but_no_goals(tmp_path: Path) -> None:
    found = stored(tmp_path, laptop=[variant("laptop", *LOSSES)])
    assert cells(learned.recipes_in_short(found)) == [
        ["[laptop](configs/laptop.yaml)", "8.0 M", "3.0 M", "2.56 M", "1.6167 ± 0.1258 (3 seeds)"]
    ]


def test_a_loss_has_its_spread_and_its_seeds() -> None:
    assert loss(variant("a", *LOSSES)["final_val_loss"]) == "1.6167 ± 0.1258 (3 seeds)"
    assert loss(variant("a", 1.5)["final_val_loss"]) == "1.5000 (1 seed)"


def test_variants_are_sorted_by_their_difference_to_the_first() -> None:
    variants = [variant("base", 1.5), variant("worse", 1.75), variant("better", 1.25)]
    assert [(row[0], row[3]) for row in cells(differences(variants, "change"))] == [
        ("base", ""),
        ("better", "-0.2500"),
        ("worse", "+0.2500"),
    ]


def test_differences_are_of_the_same_seed() -> None:
    base, other = variant("base", 1.5, 1.6, 1.7), variant("other", 1.75, 1.25)
    # 0.25 and -0.35, whose sample standard deviation is 0.6 / sqrt(2).
    assert change(other, base) == pytest.approx((-0.05, 0.6 / 2**0.5))


def test_runs_of_other_seeds_or_lengths_are_not_compared() -> None:
    base, other = variant("base", 1.5), variant("other", 1.75)
    other["runs"][0]["seed"] = 7
    with pytest.raises(DataError, match="other and base have no seed in common"):
        change(other, base)
    with pytest.raises(DataError, match="longer trained on 2,560,001 tokens, base on 2,560,000"):
        change(variant("longer", 1.5, tokens=2_560_001), base)


@pytest.mark.parametrize(("dense", "verdict"), [(1.6765, "reached"), (1.6755, "not reached")])
def test_a_sparse_model_is_judged_against_the_dense_one_of_its_active_size(
    tmp_path: Path, dense: float, verdict: str
) -> None:
    twin = {"names": ["seed_tokens"], "difference": 0.0013}
    found = stored(
        tmp_path,
        twins=[
            variant("seed_tokens", 1.6),
            variant("dense-active", dense, twin=twin | {"size": "active"}),
            variant("dense-total", 1.55, twin=twin | {"size": "total"}),
        ],
    )
    page = learned.twins(found)
    assert [row[0] for row in cells(page)] == [
        "sparse",
        "dense-total (+0.13 %)",
        "dense-active (+0.13 %)",
    ]
    assert f"The sparse model is {dense - 1.6:.4f} nats better" in page
    assert f"The goal is 0.076: {verdict}." in page
    assert "makemoe compare --config configs/seed_tokens.yaml --twin active --twin total" in page


def test_each_comparison_with_dense_models_has_its_command_and_verdict(tmp_path: Path) -> None:
    for name, sparse in (("twins", 1.5), ("twins_small", 1.4)):
        twin = {"names": ["laptop"], "difference": 0.0, "size": "active"}
        pair = [variant("laptop", sparse), variant("dense-active", 1.55, twin=twin)]
        keep(comparison(tmp_path, name, *pair, command=f"makemoe compare for {name}"), tmp_path)
    page = learned.twins(kept(tmp_path))
    first, second = page.split("With other sizes:")
    assert "\n    makemoe compare for twins\n" in first
    assert "The sparse model is 0.0500 nats better" in first
    assert "not reached" in first
    assert "\n    makemoe compare for twins_small\n" in second
    assert "The sparse model is 0.1500 nats better" in second
    assert "not reached" not in second


def in_bits(name: str, nats: float, *bits: float) -> dict[str, Any]:
    """A variant with bits per byte."""
    one = variant(name, *[nats] * len(bits), tokens=int(1e6 * nats), flops=7_400_000_000_000)
    for run, own in zip(one["runs"], bits, strict=True):
        run["final_val_bits_per_byte"] = own
    return one | {"final_val_bits_per_byte": {"mean": mean(bits), "spread": None, "n": len(bits)}}


@pytest.mark.parametrize(
    ("bits", "verdict"),
    [
        ((2.125, 2.25), "bpe has 0.0938 ± 0.0442 bits per byte fewer than laptop."),
        ((2.375, 2.375), "bpe has 0.0938 ± 0.0442 bits per byte more than laptop."),
    ],
)
def test_sub_words_are_judged_by_bits_per_byte_seed_by_seed(
    tmp_path: Path, bits: Sequence[float], verdict: str
) -> None:
    folder = comparison(
        tmp_path,
        "sub_words",
        in_bits("config=laptop", 1.5, 2.25, 2.3125),
        in_bits("config=bpe.yaml", 3.0, *bits),
        command="makemoe compare --vary config=laptop,bpe --equal flops",
    )
    keep(folder, tmp_path)
    page = learned.sub_words(kept(tmp_path))
    assert "\n    makemoe compare --vary config=laptop,bpe --equal flops\n" in page
    assert verdict in page
    assert [row[2:5] for row in cells(page)] == [
        ["1.50 M", "7.40 T", "1.5000 ± 0.0000 (2 seeds)"],
        ["3.00 M", "7.40 T", "3.0000 ± 0.0000 (2 seeds)"],
    ]


def test_the_time_to_a_loss_is_the_last_one_of_each_machine(tmp_path: Path) -> None:
    def measure(name: str, seconds: float | None, reached: bool = True) -> None:
        line = {"ours": seconds, "theirs": 900.0, "unit": "s", "ratio": 15.0, "goal": ">= 10x"}
        row = {
            "measured": f"{name[-10:]}T01:02:03+00:00",
            "results": [line | {"reached": reached, "note": "as measured"}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": {"time_to_loss": row}}))

    assert learned.time_to_loss(tmp_path) == learned.time_in_short(tmp_path) == ""
    measure("one-2-cores-2026-01-01", 61.0)
    measure("one-2-cores-2026-02-01", 60.0)
    measure("one-2-cores-2026-03-01", None)
    measure("one-2-cores-2026-04-01-quick", 1.0)
    measure("two-4-cores-2026-01-01", 95.0, reached=False)
    assert [row[:5] for row in cells(learned.time_to_loss(tmp_path))] == [
        ["one-2-cores, 2026-02-01", "60 s", "900 s", "15.0x", ">= 10x, reached"],
        ["two-4-cores, 2026-01-01", "95 s", "900 s", "15.0x", ">= 10x, not reached"],
    ]
    one, two = learned.time_in_short(tmp_path).split(").\n")[:2]
    assert "reaches this loss in 60 s" in " ".join(one.split())
    assert " ".join(two.split()).endswith("takes 15.0 times as long (two-4-cores")


def test_what_did_not_work_has_its_note_and_its_command(tmp_path: Path) -> None:
    folder = comparison(
        tmp_path,
        "tried_averaging",
        variant("averaging=null", 1.5),
        variant("averaging=ExponentialAverage", 1.5625),
        command="makemoe compare --config configs/laptop.yaml",
    )
    keep(folder, tmp_path, note="Averaging is worth nothing at a rate that falls to 0.")
    page = learned.tried(kept(tmp_path))
    assert page.startswith("## What did not work\n")
    assert "worth nothing at a rate that falls to 0.\n\n    makemoe compare --config" in page
    assert cells(page)[1][3] == "+0.0625"


def test_a_goal_that_was_not_reached_is_among_what_did_not_work(tmp_path: Path) -> None:
    found = stored(
        tmp_path,
        shakespeare=[variant("shakespeare", 1.44, 1.47)],
        seed_tokens=[variant("seed_tokens", 1.4)],
    )
    page = learned.tried(found)
    assert "/shakespeare.yaml): 1.4550 ± 0.0212 (2 seeds); the goal is 1.45 or less.\n" in page
    assert "seed_tokens" not in page


def test_changes_that_are_better_than_the_recipe_or_do_nothing_are_told_apart(
    tmp_path: Path,
) -> None:
    found = stored(
        tmp_path,
        seed_budget=[variant("seed_budget", 1.5, 1.6, 1.7)],
        ablations=[
            variant("config=relu.yaml", 0.8),
            variant("config=swiglu.yaml", 1.5),
            variant("config=dropout.yaml", 2.2),
        ],
    )
    harmful, _, without = learned.tried(found).partition("no effect is seen")
    assert "relu.yaml" in harmful
    assert "swiglu.yaml" in without
    assert "dropout.yaml" not in harmful + without


def test_other_regularisations_are_compared_with_the_recipe_of_many_passes(tmp_path: Path) -> None:
    other = variant("dropout=0.0", 1.5)
    other["runs"][0] |= {"best_val_loss": 1.48, "best_step": 1_500}
    folder = comparison(tmp_path, "many_passes", other, command="makemoe compare --seeds 1")
    keep(folder, tmp_path, note="No dropout at all.")
    with pytest.raises(DataError, match=r"shakespeare\.json is missing"):
        learned.many_passes(kept(tmp_path))
    found = stored(tmp_path, shakespeare=[variant("shakespeare", 1.45, 1.4)])
    page = learned.many_passes(found, characters=1_000_000)
    assert "sees the text 2.6 times" in page
    assert "\n\nNo dropout at all.\n\n" in page
    assert "seed 1337 is 1.4800, at step 1,500 of 2,500" in page
    assert [(row[0], row[3]) for row in cells(page)] == [
        ("shakespeare", ""),
        ("dropout=0.0", "+0.0500"),
    ]


def test_the_lowest_loss_of_many_passes_is_told_only_if_the_loss_rose_again(
    tmp_path: Path,
) -> None:
    fell, rose = variant("windows", 1.5), variant("dropout=0.0", 1.6)
    fell["runs"][0] |= {"best_val_loss": 1.5, "best_step": fell["steps"]}
    rose["runs"][0] |= {"best_val_loss": 1.48, "best_step": 1_500}
    folder = comparison(tmp_path, "many_passes", fell, rose, command="makemoe compare")
    keep(folder, tmp_path)
    page = learned.many_passes(stored(tmp_path, shakespeare=[variant("shakespeare", 1.45)]))
    assert [(row[0], row[3]) for row in cells(page)] == [
        ("shakespeare", ""),
        ("windows", "+0.0500"),
        ("dropout=0.0", "+0.1500"),
    ]
    assert "dropout=0.0: the lowest loss" in page
    assert "windows: the lowest loss" not in page


@pytest.fixture
def ngram(tmp_path: Path) -> Path:
    path = tmp_path / "ngram.json"
    path.write_text(json.dumps({"order": 6, "losses": {"last": 1.75, "unseen": 1.875}}))
    return path


def test_the_text_that_nothing_was_chosen_on_stands_beside_the_usual_one(
    tmp_path: Path, ngram: Path
) -> None:
    found = stored(
        tmp_path,
        seed_tokens=[variant("seed_tokens", 1.5)],
        unseen=[variant("seed_tokens", 1.6, tokens=2_000)],
    )
    page = learned.unseen(found, ngram)
    assert "7-gram model is -0.1250 better, seed_tokens -0.1000." in " ".join(page.split())
    assert "worth the rest, -0.0250." in " ".join(page.split())
    assert [row[1:] for row in cells(page)] == [
        ["0 to 90 %", "90 to 100 %", "yes", "1.5000 (1 seed)", "1.7500"],
        ["0 to 81 %", "81 to 90 %", "no", "1.6000 (1 seed)", "1.8750"],
    ]


def test_what_was_not_measured_is_left_out() -> None:
    made = learned.blocks({})
    del made["time_to_loss"], made["recipes"]
    assert set(made.values()) == {""}


def test_the_first_nine_tenths_are_the_training_split(tmp_path: Path, ngram: Path) -> None:
    """The number of bytes in the command for the page, of 1,115,394 characters of one byte each."""
    found = stored(tmp_path, unseen=[variant("seed_tokens", 1.6)])
    assert f"head -c {validation_begins(1_115_394)} " in learned.unseen(found, ngram)
