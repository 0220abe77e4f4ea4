"""Puts the losses of docs/results into docs/results.md and README.md.

`--keep` first stores what a comparison in a folder of `makemoe compare` came to, in docs/results,
under the name of the folder; with `--add`, beside the seeds that are there. The page shows the
recipes under the names of their configs, and: `ablations`, `many_passes` (shakespeare.yaml,
regularised differently), `twins`, `sub_words`, `unseen` and `tried` (what did not work), each also
in portions, such as `ablations_1` and `ablations_2`. What is not there yet is left out.
"""

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.ablated import ablations, effects
from benchmarks.figures import markdown, newest, replaced
from benchmarks.goals import RECIPES, Recipe
from benchmarks.kept import (
    NGRAM,
    Kept,
    Variant,
    base_of,
    change,
    change_of_bits,
    keep,
    kept,
    measured,
    portions,
    variants_of,
)
from benchmarks.page import (
    CORPUS,
    bullets,
    deviating,
    differences,
    filled,
    joined,
    loss,
    section,
    sizes,
    tokens,
)
from benchmarks.report import three_digits
from benchmarks.scripts import Options, run
from makemoe.pictures.compared import Compared, draw_compared

MAKER = "benchmarks.learned"
PROG = f"python -m {MAKER}"
ROOT = Path(__file__).parents[1]
TIMES = ROOT / "benchmarks" / "results"
DOC = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "pictures" / "learning_curves.png"

TRAINING_CHARACTERS = 1_003_854
"""Of tiny Shakespeare: all but the last tenth."""

BETTER = 0.076
"""How much better than its dense twin of the active size a model is to be, nats per token."""


def recipes(found: Mapping[str, Kept]) -> str:
    """The recipes: sizes, losses, and whether the goal is reached."""
    rows = [
        [
            f"[{recipe.name}](../configs/{recipe.name}.yaml)",
            sizes(variant),
            tokens(variant),
            recipe.budget,
            loss(variant["final_val_loss"]),
            f"<= {recipe.goal:.2f}, {recipe.verdict(variant)}",
            loss(variant["best_val_loss"]),
            f"{variant['seconds'] / 60:.1f} min",
            f"{found[recipe.name]['machine']}, {found[recipe.name]['measured']}",
        ]
        for recipe, variant in measured_recipes(found)
    ]
    head = ["config", "parameters (active)", "tokens", "budget", "val loss, end", "goal"]
    return markdown([*head, "val loss, best", "time per run", "machine, date"], rows)


def recipes_in_short(found: Mapping[str, Kept]) -> str:
    """The recipes as README shows them."""
    rows = [
        [
            f"[{recipe.name}](configs/{recipe.name}.yaml)",
            f"{variant['parameters'] / 1e6:.1f} M",
            f"{variant['active_parameters'] / 1e6:.1f} M",
            tokens(variant),
            loss(variant["final_val_loss"]),
        ]
        for recipe, variant in measured_recipes(found)
    ]
    return markdown(["config", "parameters", "active", "training tokens", "validation loss"], rows)


def measured_recipes(found: Mapping[str, Kept]) -> list[tuple[Recipe, Variant]]:
    """The recipes that were trained, each with the variant that it is."""
    return [(one, found[one.name]["variants"][0]) for one in RECIPES if one.name in found]


def twins(found: Mapping[str, Kept]) -> str:
    """Sparse models against the dense ones of their size."""
    parts = portions(found, "twins")
    if not parts:
        return ""
    tables = []
    for number, one in enumerate(parts.values()):
        base, *others = one["variants"]
        if number:
            tables += ["With other sizes:", f"    {one['command']}"]
        tables += [differences([base, *others], "model", titles(one["variants"]))]
        for variant in others:
            if (variant["twin"] or {}).get("size") == "active":
                better, spread = change(variant, base)
                reached = "reached" if better >= BETTER else "not reached"
                flops = base["flops_per_token"] / variant["flops_per_token"]
                tables.append(
                    f"The sparse model is {deviating(better, spread)} nats better than the dense "
                    f"one of its active size, at {100 * flops:.1f} % of its FLOPs per token. The "
                    f"goal is {BETTER:g}: {reached}."
                )
        tables += [one["note"]] if "note" in one else []
    first = next(iter(parts.values()))
    usual = f"makemoe compare --config configs/{first['variants'][0]['name']}.yaml"
    return section(
        "Sparse models against dense ones",
        first.get("command", f"{usual} --twin active --twin total --seeds 3 {CORPUS}"),
        "The dense models have the same layers, attention and training settings, and one "
        "feed-forward network per layer, as wide as the size asks for "
        "([compare.md](compare.md#twins)). The goal is what "
        "[arXiv:2605.13769](https://arxiv.org/abs/2605.13769) has on this text between its sparse "
        "model, of 4 experts with 2 per token, and the dense one of the active size.",
        *tables,
        measured(parts),
    )


def titles(variants: Sequence[Variant]) -> Callable[[str], str]:
    """Names as the table shows them; the sparse model has another size than its config."""
    twins = {v["name"]: v["twin"] for v in variants}

    def title(name: str) -> str:
        twin = twins[name]
        return f"{name} ({100 * twin['difference']:+.2g} %)" if twin else "sparse"

    return title


def time_to_loss(folder: Path = TIMES) -> str:
    """How long our recipe and the tutorial's take to the same loss, on each machine."""
    rows = [
        [
            f"{machine}, {row['measured'][:10]}",
            f"{three_digits(line['ours'])} {line['unit']}",
            f"{three_digits(line['theirs'])} {line['unit']}",
            f"{line['ratio']:.1f}x",
            f"{line['goal']}, {'reached' if line['reached'] else 'not reached'}",
            line["note"],
        ]
        for machine, row in newest(folder, "time_to_loss").items()
        for line in row["results"]
    ]
    if not rows:
        return ""
    return section(
        "Time to the tutorial's loss",
        "make bench ROW=time_to_loss",
        "Until the exact validation loss is 1.7468, with which the tutorial's own code, with its "
        "expert capacity, ended when we ran it (it publishes 1.7645, the mean of random batches): "
        "`makemoe fit` with a shorter run of [laptop](../configs/laptop.yaml), as a whole command, "
        "against the tutorial's recipe written plainly and without capacity, which learns better "
        "(`benchmarks/plain_moe.py`, AdamW at 1e-3). One run each.",
        markdown(["machine, date", "makemoe", "plain", "ratio", "goal", ""], rows),
    )


def time_in_short(folder: Path = TIMES) -> str:
    """The same as README tells it; nothing if it was not measured."""
    return "".join(
        filled(
            "The tutorial's code with expert capacity ended at a loss of 1.7468 when we ran it. A "
            "shorter run of laptop reaches this loss in "
            f"{three_digits(line['ours'])} {line['unit']}, start of Python included; the "
            f"tutorial's recipe without capacity takes {line['ratio']:.1f} times as long "
            f"({machine})."
        )
        + "\n"
        for machine, row in newest(folder, "time_to_loss").items()
        for line in row["results"]
    )


def sub_words(found: Mapping[str, Kept]) -> str:
    """Recipes whose tokens differ, in bits per byte of text."""
    parts = portions(found, "sub_words")
    if not parts:
        return ""
    rows, verdicts = [], []
    for one in parts.values():
        base, *others = one["variants"]
        rows += [
            [
                config_of(variant),
                sizes(variant),
                tokens(variant),
                f"{variant['flops'] / 1e12:.2f} T",
                loss(variant["final_val_loss"]),
                loss(variant["final_val_bits_per_byte"]),
            ]
            for variant in one["variants"]
        ]
        for variant in others:
            more, spread = change_of_bits(variant, base)
            verdicts.append(
                f"{config_of(variant)} has {deviating(abs(more), spread)} bits per byte "
                f"{'fewer' if more < 0 else 'more'} than {config_of(base)}."
            )
    head = ["config", "parameters (active)", "tokens", "FLOPs", "nats per token", "bits per byte"]
    return section(
        "Sub-words against characters",
        next(iter(parts.values()))["command"],
        "Both recipes spend the same FLOPs. Nats per token do not compare, because a sub-word is "
        "about two characters here; bits per byte do. Recipes of the first table were trained "
        "again for this one, and end a little differently.",
        markdown(head, rows),
        " ".join(verdicts),
        measured(parts),
    )


def config_of(variant: Variant) -> str:
    """The name of a varied config."""
    return str(variant["name"]).removeprefix("config=").removesuffix(".yaml")


def many_passes(found: Mapping[str, Kept], characters: int = TRAINING_CHARACTERS) -> str:
    """What regularisation is worth in the recipe that sees the text most often."""
    parts = portions(found, "many_passes")
    if not parts:
        return ""
    recipe, changed = base_of(found, "shakespeare", "the variants"), variants_of(parts)
    risen = [
        f"{one['name']}: the lowest loss of the run with seed {run['seed']} is "
        f"{run['best_val_loss']:.4f}, at step {run['best_step']:,} of {one['steps']:,}."
        for one in changed
        for run in one["runs"]
        if run["best_step"] < one["steps"]
    ]
    return section(
        "Regularisation over many passes",
        "\n    ".join(one["command"].replace(" && ", "\n    ") for one in parts.values()),
        "[shakespeare](../configs/shakespeare.yaml) sees the text "
        f"{recipe['tokens'] / characters:.1f} times, with dropout. `difference` is as in "
        "the ablations: above 0, the first row is better.",
        *[one["note"] for one in parts.values() if "note" in one],
        differences([recipe, *changed], "variant"),
        " ".join(risen),
        measured(parts),
    )


def tried(found: Mapping[str, Kept]) -> str:
    """What did not work: missed goals, changes without effect, and what is kept for this."""
    told: list[str] = []
    missed = [
        f"[{recipe.name}](../configs/{recipe.name}.yaml): {loss(variant['final_val_loss'])}; the "
        f"goal is {recipe.goal:.2f} or less."
        for recipe, variant in measured_recipes(found)
        if recipe.verdict(variant) == "not reached"
    ]
    if missed:
        told += ["A goal that was not reached:", bullets(missed)]
    found_out = effects(found)
    if better := [one.line for one in found_out if one.is_better()]:
        told += [
            "With these changes, the seed budget's recipe ends lower than noise explains: its own "
            "choices seem to do harm. Of twenty changes without an effect, about one would be as "
            "far from 0 (Student's t, with the deviation of three differences, or of the recipe).",
            bullets(better),
        ]
    if invisible := [one.line for one in found_out if not one.is_seen()]:
        told += [
            "Of these changes no effect is seen: their difference from 0 is not significant. So "
            "few seeds do not show whether they matter.",
            bullets(invisible),
        ]
    for name, one in portions(found, "tried").items():
        told += [one["note"]] if "note" in one else []
        told += [f"    {one['command']}"] if "command" in one else []
        told += [differences(one["variants"], "variant"), measured({name: one})]
    return joined("## What did not work", *map(filled, told)) if told else ""


def unseen(found: Mapping[str, Kept], ngram: Path = NGRAM) -> str:
    """Recipes on a text cut that nothing was chosen on, beside the cut that they were chosen on."""
    parts = portions(found, "unseen")
    if not parts:
        return ""
    hard = json.loads(ngram.read_text(encoding="utf-8"))
    last, before = (f"{hard['losses'][part]:.4f}" for part in ("last", "unseen"))
    order = f"{hard['order'] + 1}-gram model"
    rows, verdicts = [], []
    harder = hard["losses"]["last"] - hard["losses"]["unseen"]
    for variant in variants_of(parts):
        name = variant["name"]
        chosen = f"[{name}](../configs/{name}.yaml)"
        if name in found:
            usual = found[name]["variants"][0]["final_val_loss"]
            rows.append([chosen, "0 to 90 %", "90 to 100 %", "yes", loss(usual), last])
            better = usual["mean"] - variant["final_val_loss"]["mean"]
            verdicts.append(
                f"On the part before, the {order} is {harder:.4f} better, {name} {better:.4f}. "
                f"Choosing on the last tenth may have been worth the rest, {harder - better:.4f}."
            )
        own = loss(variant["final_val_loss"])
        rows.append([chosen, "0 to 81 %", "81 to 90 %", "no", own, before])
    seeds = max(variant["final_val_loss"]["n"] for variant in variants_of(parts))
    return section(
        "On text that nothing was chosen on",
        f"head -c {TRAINING_CHARACTERS} tinyshakespeare.txt > first_nine_tenths.txt\n"
        f"    makemoe compare --config configs/seed_tokens.yaml --seeds {seeds} \\\n"
        "        --data.corpus first_nine_tenths.txt --run.name unseen\n"
        "    python -m benchmarks.ngram tinyshakespeare.txt",
        "The same recipe without the last tenth of the play, on which its settings were chosen. "
        "The last tenth of what remains is the validation split. No setting was chosen by the loss "
        "on it, although it was part of the training split when they were chosen. The two parts of "
        "the play are not equally hard, and the second model has a tenth less to learn from. How "
        f"much of the difference that is, the {order} tells: it counts, and has nothing to choose.",
        markdown(
            ["config", "trained on", "validated on", "chosen on it", "val loss, end", order], rows
        ),
        *verdicts,
        measured(parts),
    )


def blocks(found: Mapping[str, Kept]) -> dict[str, str]:
    """The parts of docs/results.md that come from measurements, by the name in their marks."""
    return {
        "recipes": recipes(found),
        "ablations": ablations(found),
        "many_passes": many_passes(found),
        "twins": twins(found),
        "sub_words": sub_words(found),
        "time_to_loss": time_to_loss(),
        "tried": tried(found),
        "unseen": unseen(found),
    }


def pages(found: Mapping[str, Kept]) -> dict[Path, str]:
    """The pages as they are to be."""
    made = {
        DOC: blocks(found),
        README: {"recipes": recipes_in_short(found), "time": time_in_short()},
    }
    return {
        path: replaced(path.read_text(encoding="utf-8"), parts, MAKER)
        for path, parts in made.items()
    }


def draw(found: Mapping[str, Kept], path: Path = PICTURE) -> None:
    """Draw the learning curves of the recipes."""
    curves = []
    seeds = max((len(variant["runs"]) for _, variant in measured_recipes(found)), default=0)
    for recipe, variant in measured_recipes(found):
        own = len(variant["runs"])
        name = recipe.name + (f" ({own} of {seeds} seeds)" if own < seeds else "")
        per_step = variant["tokens"] // variant["steps"]
        runs = [run["curve"] for run in variant["runs"]]
        points = [list(zip(run["step"], run["val_loss"], strict=True)) for run in runs]
        curves.append(Compared(name, per_step, points))
    if curves:
        draw_compared(curves, "tokens", seeds).savefig(path, format="png")


def main() -> None:
    """Store what is to be kept, then renew the pages and the picture."""
    parser = Options(PROG, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a folder of makemoe compare")
    parser.add_argument("--note", metavar="TEXT", default="", help="what the page says of it")
    parser.add_argument(
        "--add", action="store_true", help="add its seeds to those that are stored under its name"
    )
    options = parser.parse_args()
    if (options.note or options.add) and not options.keep:
        parser.error("--note and --add are about a comparison: name its folder with --keep")
    if options.keep:
        keep(options.keep, note=options.note, adds=options.add)
    found = kept()
    for path, text in pages(found).items():
        path.write_text(text, encoding="utf-8")
    draw(found)


if __name__ == "__main__":
    run(PROG, main)
