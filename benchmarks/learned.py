"""Puts the losses of docs/results.md into it: `python -m benchmarks.learned [--keep FOLDER]`.

`--keep` first stores what a comparison in a folder of `makemoe compare` came to, in docs/results,
under the name of the folder.
"""

import json
import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures import markdown, replaced
from benchmarks.machine import machine_name
from benchmarks.scripts import Options, run
from makemoe.errors import DataError
from makemoe.pictures.compared import Compared, draw_compared

PROG = "python -m benchmarks.learned"
ABLATIONS = Path(__file__).parent / "ablations"
DOCS = Path(__file__).parents[1] / "docs"
DOC = DOCS / "results.md"
RESULTS = DOCS / "results"
PICTURE = DOCS / "pictures" / "learning_curves.png"

Kept = dict[str, Any]
"""A comparison as it is stored."""

Variant = dict[str, Any]
"""One variant of it."""


class Recipe(NamedTuple):
    """A config and the mean validation loss it was to reach, in nats per token."""

    name: str
    goal: float


RECIPES = (
    Recipe("seed_budget", 1.56),
    Recipe("seed_tokens", 1.50),
    Recipe("laptop", 1.55),
    Recipe("shakespeare", 1.45),
)


def keep(folder: Path, results: Path = RESULTS) -> Path:
    """Store a comparison with its date and machine, and without the folders it was made in.

    Raises:
        DataError: if the folder holds no comparison, or one with runs that have not finished.
    """
    source = folder / "compare.json"
    if not source.is_file():
        raise DataError(f"{folder} is not the folder of a comparison: it has no {source.name}")
    plain = json.loads(source.read_text(encoding="utf-8"))
    for variant in plain["variants"]:
        for one in variant["runs"]:
            if one["status"] != "finished":
                raise DataError(
                    f"{folder}: {variant['name']} with seed {one['seed']} has not finished: give "
                    "the command of the comparison again"
                )
    for variant in plain["variants"]:
        del variant["folder"], variant["options"]
        for one in variant["runs"]:
            del one["folder"]
    made = datetime.fromtimestamp(source.stat().st_mtime, UTC)
    about = {
        "measured": f"{made:%Y-%m-%d}",
        "machine": machine_name(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }
    results.mkdir(exist_ok=True)
    path = results / f"{folder.name}.json"
    path.write_text(json.dumps(about | plain, indent=1) + "\n", encoding="utf-8")
    return path


def kept(results: Path = RESULTS) -> dict[str, Kept]:
    """Every stored comparison, by name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(results.glob("*.json"))
    }


def recipes(found: Mapping[str, Kept]) -> str:
    """The recipes: sizes, losses, and whether the goal is reached."""
    rows = []
    for name, goal in RECIPES:
        if name not in found:
            continue
        (variant,) = found[name]["variants"]
        reached = variant["final_val_loss"]["mean"] <= goal
        rows.append(
            [
                f"[{name}](../configs/{name}.yaml)",
                f"{variant['parameters']:,}, {variant['active_parameters']:,}",
                f"{variant['tokens'] / 1e6:.2f} M",
                loss(variant["final_val_loss"]),
                f"{goal:.2f}, {'reached' if reached else 'not reached'}",
                loss(variant["best_val_loss"]),
                f"{variant['seconds'] / 60:.1f} min",
                f"{found[name]['machine']}, {found[name]['measured']}",
            ]
        )
    head = ["config", "parameters, active", "tokens", "val loss, end", "goal"]
    return markdown([*head, "val loss, best", "time per run", "machine, date"], rows)


def differences(comparison: Kept, what: str, shown: Callable[[str], str] = str) -> str:
    """Every variant of a comparison against its first one, by what is shown for its name."""
    first, *others = comparison["variants"]
    base = first["final_val_loss"]["mean"]
    rows = []
    for variant in [first, *sorted(others, key=lambda v: float(v["final_val_loss"]["mean"]))]:
        change = variant["final_val_loss"]["mean"] - base
        rows.append(
            [
                shown(variant["name"]),
                sizes(variant),
                loss(variant["final_val_loss"]),
                f"{change:+.4f}" if variant is not first else "",
                f"{variant['seconds'] / 60:.1f} min",
            ]
        )
    return markdown([what, "parameters, active", "val loss, end", "difference", "time"], rows)


def ablation(name: str, folder: Path = ABLATIONS) -> str:
    """What the config of an ablation says of itself, and its file."""
    file = name.removeprefix("config=")
    said = (folder / file).read_text(encoding="utf-8").partition("\n")[0]
    return f"{said.removeprefix('# ').rstrip('.')} ([{file}](../benchmarks/ablations/{file}))"


def sizes(variant: Variant) -> str:
    """Parameters in total and per token."""
    return f"{variant['parameters']:,}, {variant['active_parameters']:,}"


def loss(found: Mapping[str, Any]) -> str:
    """Mean and sample standard deviation over seeds."""
    if found["spread"] is None:
        return f"{found['mean']:.4f} (1 seed)"
    return f"{found['mean']:.4f} ± {found['spread']:.4f} ({found['n']} seeds)"


def blocks(found: Mapping[str, Kept]) -> dict[str, str]:
    """The parts of docs/results.md that come from comparisons, by the name in their marks."""
    tables = {"recipes": recipes(found)}
    if "ablations" in found:
        tables["ablations"] = differences(found["ablations"], "change", ablation)
    if "twins" in found:
        tables["twins"] = differences(found["twins"], "model")
    return tables


def draw(found: Mapping[str, Kept], path: Path = PICTURE) -> None:
    """Draw the learning curves of the recipes."""
    curves = []
    for recipe in RECIPES:
        if recipe.name in found:
            (variant,) = found[recipe.name]["variants"]
            per_step = variant["tokens"] // variant["steps"]
            runs = [run["curve"] for run in variant["runs"]]
            points = [list(zip(run["step"], run["val_loss"], strict=True)) for run in runs]
            curves.append(Compared(recipe.name, per_step, points))
    if curves:
        seeds = max(len(one.curves) for one in curves)
        draw_compared(curves, "tokens", seeds).savefig(path, format="png")


def main() -> None:
    """Store what is to be kept, then renew the page and its picture."""
    parser = Options(PROG, description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a folder of makemoe compare")
    options = parser.parse_args()
    if options.keep:
        keep(options.keep)
    found = kept()
    DOC.write_text(replaced(DOC.read_text(encoding="utf-8"), blocks(found)), encoding="utf-8")
    draw(found)


if __name__ == "__main__":
    run(PROG, main)
