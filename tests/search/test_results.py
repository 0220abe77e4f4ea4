"""Means, spreads, the table and the data, against NumPy and the files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from makemoe.search.plan import Plan, Timing, TwinOf, Variant, about, difference, makespan
from makemoe.search.results import as_plain, result_of, spread
from makemoe.search.runs import Run
from makemoe.search.table import plan_table, rounded, table

VARIANT = Variant("a", "a", (), {}, 1_234_567, 345_678, 2_000_000, 8, 20, 10, Timing(2, 0.1, 1))
TWIN = replace(VARIANT, name="b", folder="b", twin=TwinOf("active", ("a",), 0.00123))


def ended(folder: Path, variant: Variant, seed: int, losses: list[float], why: str = "") -> Run:
    run = Run(folder, variant, seed)
    run.folder.mkdir(parents=True)
    rows = [f"{10 * (n + 1)},{loss!r},\n{10 * (n + 1) + 5},,3.0\n" for n, loss in enumerate(losses)]
    (run.folder / "metrics.csv").write_text("step,val_loss,train_loss\n" + "".join(rows))
    run.seconds = 10.0 * seed
    run._keep("failed" if why else "finished", why)
    return Run(folder, variant, seed)


def test_mean_and_spread_are_those_of_numpy(tmp_path: Path) -> None:
    losses = np.random.default_rng(1).normal(2, 0.1, (3, 2))
    runs = [ended(tmp_path, VARIANT, seed, losses[seed - 1].tolist()) for seed in (1, 2, 3)]
    result = result_of(VARIANT, runs)
    for found, truth in ((result.best, losses.min(1)), (result.final, losses[:, -1])):
        assert found is not None
        assert found.mean == pytest.approx(truth.mean(), rel=1e-12)
        assert found.spread == pytest.approx(truth.std(ddof=1), rel=1e-9)
        assert found.n == 3
    assert result.seconds == 20
    final = losses[:, -1]
    assert f"{final.mean():.4f} ± {final.std(ddof=1):.4f}" in table([result])[1]


def test_one_seed_has_no_spread_and_none_no_mean() -> None:
    assert spread([2.0]) == (2.0, None, 1)
    assert spread([]) is None


def test_the_table_says_why_a_variant_failed_and_how_far_off_a_twin_is(tmp_path: Path) -> None:
    runs = [
        ended(tmp_path, VARIANT, 1, [2.5, 2.0]),
        ended(tmp_path, VARIANT, 2, [2.5], "out of luck"),
        ended(tmp_path, TWIN, 1, [], "no memory"),
        ended(tmp_path, TWIN, 2, [], "no memory"),
    ]
    head, one, twin, *why = table([result_of(variant, runs) for variant in (VARIANT, TWIN)])
    assert head.split()[0] == "variant"
    assert one.split()[:6] == ["a", "1.235M", "345.7k", "2M", "160", "320M"]
    assert "1 of 2" in one
    assert twin.startswith("b (+0.12 %)")
    assert "0 of 2" in twin
    assert why == ["failed: a, seed 2: out of luck", "failed: b, seed 1, 2: no memory"]
    assert "±" not in one


@pytest.mark.parametrize("room", [60, 75, 100, 200])
def test_a_table_fits_its_room_and_always_has_losses_and_seeds(tmp_path: Path, room: int) -> None:
    runs = [ended(tmp_path, VARIANT, 1, [2.5, 2.0]), ended(tmp_path, VARIANT, 2, [2.25, 2.0])]
    result = result_of(VARIANT, runs)
    lines = table([result], room)
    assert max(map(len, lines)) <= room
    for words in ("best val_loss", "final val_loss", "seeds", "2.0000 ± 0.0000"):
        assert words in "\n".join(lines)
    assert ("FLOPs/token" in lines[0]) == (lines == table([result])) == (room == 200)
    plan = plan_table(Plan((VARIANT,), (1, 2), "tokens"), room)
    assert max(map(len, plan)) <= room
    assert "s per run" in plan[0]


def test_the_data_are_those_of_the_runs(tmp_path: Path) -> None:
    runs = [ended(tmp_path, VARIANT, seed, [2.5, 2.0, 2.25]) for seed in (1, 2)]
    plan = Plan((VARIANT,), (1, 2), "tokens")
    plain = json.loads(json.dumps(as_plain(plan, [result_of(VARIANT, runs)])))
    [variant] = plain["variants"]
    assert variant["best_val_loss"] == {"mean": 2.0, "spread": 0.0, "n": 2}
    assert variant["tokens"] == 20 * 8
    assert variant["flops"] == 20 * 8 * 2_000_000
    assert variant["runs"][1]["curve"] == {
        "step": [10, 20, 30],
        "tokens": [80, 160, 240],
        "flops": [160_000_000, 320_000_000, 480_000_000],
        "val_loss": [2.5, 2.0, 2.25],
        "val_bits_per_byte": None,  # not in its metrics
    }
    assert (variant["runs"][0]["best_step"], variant["runs"][0]["final_val_loss"]) == (20, 2.25)


def test_losses_of_different_tokenizers_are_compared_in_bits_per_byte(tmp_path: Path) -> None:
    kinds = ({"tokenizer": None}, {"tokenizer": {"class_path": "ByteTokenizer"}})
    variants = [
        replace(VARIANT, name=name, folder=name, settings={"data": data})
        for name, data in zip("xy", kinds, strict=True)
    ]
    bits = {"x": [3.5, 3.0, 2.75], "y": [2.5, 2.25, 1.75]}
    results = []
    for variant in variants:
        runs = []
        for seed in (1, 2):
            run = ended(tmp_path, variant, seed, [2.5, 2.0, 2.25])
            rows = [f"{10 * (n + 1)},2.0,{x + seed}" for n, x in enumerate(bits[variant.name])]
            header = "step,val_loss,val_bits_per_byte\n"
            (run.folder / "metrics.csv").write_text(header + "\n".join(rows) + "\n")
            runs.append(run)
        results.append(result_of(variant, runs))
    head, one, other = table(results)
    assert "final bits/byte" in head
    assert "4.2500 ± 0.7071" in one
    assert "3.2500 ± 0.7071" in other
    assert "bits" not in table(results[:1])[0]
    plain = as_plain(Plan(tuple(variants), (1, 2), "flops"), results)["variants"][1]
    assert plain["final_val_bits_per_byte"]["mean"] == 3.25
    assert [run["final_val_bits_per_byte"] for run in plain["runs"]] == [2.75, 3.75]
    curves = [run["curve"]["val_bits_per_byte"] for run in plain["runs"]]
    assert curves == [[3.5, 3.25, 2.75], [4.5, 4.25, 3.75]]


def test_a_step_without_bits_per_byte_is_null_in_the_curve(tmp_path: Path) -> None:
    run = ended(tmp_path, VARIANT, 1, [2.0])
    rows = "step,val_loss,val_bits_per_byte\n10,2.5,\n20,2.0,3.0\n"
    (run.folder / "metrics.csv").write_text(rows)
    [plain] = as_plain(Plan((VARIANT,), (1,), "tokens"), [result_of(VARIANT, [run])])["variants"]
    curve = plain["runs"][0]["curve"]
    assert (curve["val_loss"], curve["val_bits_per_byte"]) == ([2.5, 2.0], [None, 3.0])


def test_the_table_says_so_if_the_texts_differ(tmp_path: Path) -> None:
    def lines(*settings: dict[str, object]) -> list[str]:
        variants = [replace(VARIANT, name=f"{n}", settings=one) for n, one in enumerate(settings)]
        return table([result_of(variant, []) for variant in variants])

    def of(corpus: str, tokens: int, tokenizer: str = "CharTokenizer") -> dict[str, object]:
        data = {"corpus": corpus, "tokenizer": {"class_path": tokenizer}}
        return {"data": data, "text": {"tokens": tokens, "sha256": f"of {tokens}"}}

    said = "note: the variants are validated on different texts, so their losses do not compare"
    assert lines(of("a.txt", 7), of("b.txt", 8))[-1] == said
    assert lines(of("a.txt", 7), of("copy.txt", 7))[-1] != said
    # Other tokenizers make other tokens of the same text.
    assert lines(of("a.txt", 7), of("a.txt", 5, "ByteTokenizer"))[-1] != said
    assert lines(of("a.txt", 7), of("b.txt", 5, "ByteTokenizer"))[-1] == said


def test_a_plan_is_what_json_says_of_it() -> None:
    plan = Plan((VARIANT, TWIN), (1, 2), "flops")
    assert Plan.of_plain(json.loads(json.dumps(plan.as_plain()))) == plan
    assert VARIANT.seconds == pytest.approx(2 + 20 * 0.1 + 2 * 1)
    assert plan_table(plan)[1].split()[-1] == "6"
    assert plan_table(replace(plan, variants=(replace(VARIANT, timing=None),)))[1].endswith("?")


def test_the_first_differing_setting_is_named() -> None:
    one = {"model": {"n_embd": 8, "router": {"class_path": "A", "init_args": {"x": 1}}}}
    other = {"model": {"n_embd": 8, "router": {"class_path": "A", "init_args": {"x": 2}}}}
    assert difference(one, one) is None
    assert difference(one, other) == "model.router.init_args.x was 1, and is now 2"
    assert difference(one, {}) is not None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "about 1 s"), (89, "about 89 s"), (200, "about 4 min"), (7260, "about 2 h 01 min")],
)
def test_times_are_told_in_round_figures(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_runs_side_by_side_take_as_long_as_the_fullest_place() -> None:
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([], 2) == 0


def test_large_counts_are_rounded_to_four_digits() -> None:
    counts = (7, 1_000, 46_528, 8_996_545, 2_560_000_000)
    assert [rounded(n) for n in counts] == ["7", "1k", "46.53k", "8.997M", "2.56G"]
