"""What each part of seed_budget is worth: the recipe with one change at a time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.kept import Kept, base_of, change, measured, portions, variants_of
from benchmarks.page import CORPUS, deviating, differences, section
from makemoe.errors import DataError

ABLATIONS = Path(__file__).parent / "ablations"

QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""0.975 quantiles of Student's t with 1, 2, 3 ... degrees of freedom."""


def ablations(found: Mapping[str, Kept], folder: Path = ABLATIONS) -> str:
    """The recipe with one change at a time."""
    parts = portions(found, "ablations")
    if not parts:
        return ""
    base, changed = base_of(found, "seed_budget", "the ablations"), variants_of(parts)
    table = differences([base, *changed], "change", lambda name: ablation(name, folder))
    seeds = [variant["final_val_loss"]["n"] for variant in changed]
    rules = []
    if max(seeds) > 1:
        rules.append(
            "A mean of 3 seeds differs significantly from 0 (5 %) if it is more than 2.5 times "
            "its deviation."
        )
    if min(seeds) == 1:
        spread = base["final_val_loss"]["spread"] or 0.0
        rules.append(
            "A row of one seed has no deviation; the losses without a change have one of "
            f"{spread:.4f}."
        )
    if left := len(list(folder.glob("*.yaml"))) - len(changed):
        rules.append(f"{left} changes of benchmarks/ablations are not measured yet.")
    return section(
        "Ablations",
        f"makemoe compare --config configs/seed_budget.yaml --seeds {max(seeds)} {CORPUS} \\\n"
        "        --vary \"config=$(echo benchmarks/ablations/*.yaml | tr ' ' ,)\"",
        "Each row is [seed_budget](../configs/seed_budget.yaml) with one change. `difference` is "
        "the loss with the change minus the loss without it, seed by seed, as mean and sample "
        "standard deviation: above 0, the change is worse. " + " ".join(rules),
        table,
        measured(parts),
    )


def ablation(name: str, folder: Path = ABLATIONS) -> str:
    """What the config of an ablation says of itself, and its file.

    Raises:
        DataError: if there is no such file.
    """
    file = Path(name.removeprefix("config=")).name
    if not (folder / file).is_file():
        if name == "seed_budget":
            return "none"
        raise DataError(f"benchmarks/ablations has no {file}, but docs/results has its losses")
    said = (folder / file).read_text(encoding="utf-8").partition("\n")[0]
    return f"{said.removeprefix('# ').rstrip('.')} ([{file}](../benchmarks/ablations/{file}))"


class Effect(NamedTuple):
    """What a change did.

    Attributes:
        difference: in loss, mean over seeds; below 0 the change is better than the recipe.
        bound: what 5 % of changes without an effect exceed. With 3 or more seeds, t * d / sqrt(n),
            with d the deviation of the n differences. With fewer, t * s * sqrt(2 / n), the
            difference of two means, with s the deviation of the losses of the recipe's m seeds; t
            has m - 1 degrees of freedom.
        line: the change and its difference, as the page shows them.
    """

    difference: float
    bound: float
    line: str

    def is_better(self) -> bool:
        """Whether it is below 0 by more than the bound."""
        return self.difference < 0 and self.is_seen()

    def is_seen(self) -> bool:
        """Whether it is further from 0 than the bound."""
        return abs(self.difference) > self.bound


def quantile(seeds: int) -> float:
    """Student's t of a deviation over so many seeds, which has one degree of freedom fewer."""
    return QUANTILES[min(seeds - 1, len(QUANTILES)) - 1]


def effects(found: Mapping[str, Kept], folder: Path = ABLATIONS) -> list[Effect]:
    """The effects of all changes, the best first; none if the recipe has one seed only."""
    parts = portions(found, "ablations")
    if not parts:
        return []
    base, told = base_of(found, "seed_budget", "the ablations"), []
    deviation, seeds = (base["final_val_loss"][key] for key in ("spread", "n"))
    if deviation is None:
        return []
    for variant in variants_of(parts):
        difference, spread = change(variant, base)
        own = variant["final_val_loss"]["n"]
        bound = quantile(seeds) * deviation * math.sqrt(2 / own)
        if own >= 3 and spread is not None:
            bound = quantile(own) * spread / math.sqrt(own)
        line = f"{ablation(variant['name'], folder)}: {deviating(difference, spread, '+')}"
        told.append(Effect(difference, bound, line))
    return sorted(told)
