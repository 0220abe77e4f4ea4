"""Comparisons of `makemoe compare` that are stored in docs/results."""

import json
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.machine import machine_name
from makemoe.errors import DataError
from makemoe.search.results import spread

COMPARISON = "compare.json"
"""File of a comparison's folder."""

JOINED = dict.fromkeys(("measured", "machine", "python", "torch"), ", ") | {"command": " && "}
"""What is said of seeds that were trained at different times, and what stands between."""

OF_SEEDS = ("--seed", "--seeds", "--jobs", "--run.name", "--run.root")
"""Options that do not change what a seed learns."""

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NGRAM = RESULTS / "ngram.json"
"""Losses of an n-gram model on two parts of tiny Shakespeare, by `benchmarks.ngram`."""

Kept = dict[str, Any]
"""A comparison as it is stored."""

Variant = dict[str, Any]
"""One variant of it."""


def keep(folder: Path, results: Path = RESULTS, note: str = "", adds: bool = False) -> Path:
    """Store a comparison with its date and machine, and without the folders it was made in.

    Args:
        folder: of the comparison; its name is that of the stored file.
        results: where it is stored.
        note: what the page says of it.
        adds: add its seeds to those of the comparison that is stored under its name.

    Raises:
        DataError: if the folder holds no comparison, or one with runs that have not finished; or if
            it has not the variants, or has the seeds, of what it is added to.
    """
    plain = finished(folder)
    about = when_and_where(folder / COMPARISON)
    if note:
        about["note"] = note
    results.mkdir(exist_ok=True)
    path = results / f"{folder.name}.json"
    whole = about | plain
    if adds:
        if not path.is_file():
            raise DataError(f"{path} is missing: there is nothing to add the seeds to")
        whole = joined(json.loads(path.read_text(encoding="utf-8")), whole)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return path


def finished(folder: Path) -> Kept:
    """A comparison all of whose runs have finished, without the folders it was made in."""
    source = folder / COMPARISON
    if not source.is_file():
        raise DataError(f"{folder} is not the folder of a comparison: it has no {source.name}")
    plain: Kept = json.loads(source.read_text(encoding="utf-8"))
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
    if "command" in plain:
        plain["command"] = without_folders(plain["command"])
    return plain


def joined(one: Kept, other: Kept) -> Kept:
    """Two comparisons of the same variants, with other seeds, as one."""
    names = [[variant["name"] for variant in kept["variants"]] for kept in (one, other)]
    if names[0] != names[1]:
        raise DataError(f"the variants {', '.join(names[1])} are not {', '.join(names[0])}")
    asked = [apart_from_seeds(kept.get("command", "")) for kept in (one, other)]
    if asked[0] != asked[1] or one["equal"] != other["equal"]:
        raise DataError(f"{asked[1] or 'no command'} is not {asked[0] or 'no command'}")
    pairs = zip(one["variants"], other["variants"], strict=True)
    whole = one | other | {"variants": [of_both(*pair) for pair in pairs]}
    for key, between in JOINED.items():
        if key in one:
            parts = [*one[key].split(between), *other[key].split(between)]
            whole[key] = between.join(dict.fromkeys(parts))
    return whole | {"seeds": [run["seed"] for run in whole["variants"][0]["runs"]]}


def apart_from_seeds(command: str) -> str:
    """What a command asks for, whichever seeds it trains and how."""
    words = shlex.split(command.partition(" && ")[0])
    kept, skips = [], False
    for word in words:
        option, is_joined, _ = word.partition("=")
        if not skips and option not in OF_SEEDS:
            kept.append(word)
        skips = not skips and option in OF_SEEDS and not is_joined
    return shlex.join(kept)


def of_both(one: Variant, other: Variant) -> Variant:
    """A variant with the runs of both, and the means over all."""
    for key in ("parameters", "active_parameters", "flops_per_token", "steps", "tokens"):
        if one[key] != other[key]:
            raise DataError(f"{one['name']}: {key} was {one[key]:,}, and is now {other[key]:,}")
    runs = sorted([*one["runs"], *other["runs"]], key=lambda run: run["seed"])
    for before, after in pairwise(runs):
        if before["seed"] == after["seed"]:
            raise DataError(f"{one['name']}: seed {after['seed']} is stored already")
    losses = [run["curve"]["val_loss"] for run in runs]
    bits = [run.get("final_val_bits_per_byte") for run in runs]
    return one | {
        "runs": runs,
        "best_val_loss": summary([min(curve) for curve in losses]),
        "final_val_loss": summary([curve[-1] for curve in losses]),
        "final_val_bits_per_byte": None if None in bits else summary(bits),
        "seconds": fmean(run["seconds"] for run in runs),
    }


def summary(figures: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and number, as a comparison has them."""
    found = spread(figures)
    assert found is not None
    return found._asdict()


def when_and_where(source: Path) -> dict[str, str]:
    """The date of a file with results, the machine, and the versions there."""
    made = datetime.fromtimestamp(source.stat().st_mtime, UTC)
    return {
        "measured": f"{made:%Y-%m-%d}",
        "machine": machine_name(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def without_folders(command: str) -> str:
    """A command without the folders of this machine: of texts and absolute paths, the names."""
    words: list[str] = []
    for word in shlex.split(command):
        option, sign, value = word.rpartition("=")
        named = option or (words[-1] if words else "")
        if value.startswith("/") or named in ("--data.corpus", "--data.test_corpus"):
            names = ",".join(Path(one).name for one in value.split(","))
            word = f"{option}{sign}{names}"
        words.append(word)
    return shlex.join(words)


def kept(results: Path = RESULTS) -> dict[str, Kept]:
    """Every stored comparison, by name."""
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(results.glob("*.json"))
    }
    return {name: one for name, one in found.items() if "variants" in one}


def portions(found: Mapping[str, Kept], name: str) -> dict[str, Kept]:
    """The comparisons of a name: NAME itself, and NAME_1, NAME_2 and so on."""
    return {own: one for own, one in found.items() if own == name or own.startswith(f"{name}_")}


def base_of(found: Mapping[str, Kept], name: str, what: str) -> Variant:
    """The recipe of a name, with which something is compared.

    Raises:
        DataError: if it is not there.
    """
    if name not in found:
        raise DataError(f"{name}.json is missing: {what} are compared with it")
    base: Variant = found[name]["variants"][0]
    return base


def variants_of(parts: Mapping[str, Kept]) -> list[Variant]:
    """The variants of several comparisons; one that is in several has the seeds of all.

    Raises:
        DataError: if two of them have the same seed of a variant, or another size of it.
    """
    found: dict[str, Variant] = {}
    for one in parts.values():
        for variant in one["variants"]:
            name = variant["name"]
            found[name] = of_both(found[name], variant) if name in found else variant
    return [*found.values()]


def last_losses(variant: Variant) -> dict[int, float]:
    """The last validation loss of each seed."""
    return {run["seed"]: run["curve"]["val_loss"][-1] for run in variant["runs"]}


def last_bits(variant: Variant) -> dict[int, float]:
    """The last bits per byte of each seed."""
    return {run["seed"]: run["final_val_bits_per_byte"] for run in variant["runs"]}


def change(variant: Variant, base: Variant) -> tuple[float, float | None]:
    """Mean and sample standard deviation of the differences in loss, seed by seed.

    Only seeds that both have count; the deviation of one difference is None.

    Raises:
        DataError: if they trained on different numbers of tokens, or share no seed.
    """
    if variant["tokens"] != base["tokens"]:
        raise DataError(
            f"{variant['name']} trained on {variant['tokens']:,} tokens, {base['name']} on "
            f"{base['tokens']:,}: they cannot be compared"
        )
    return seed_by_seed(variant, base, last_losses)


def change_of_bits(variant: Variant, base: Variant) -> tuple[float, float | None]:
    """The same for bits per byte, in which different numbers of tokens compare."""
    return seed_by_seed(variant, base, last_bits)


def seed_by_seed(
    variant: Variant, base: Variant, ends: Callable[[Variant], Mapping[int, float]]
) -> tuple[float, float | None]:
    """Mean and sample standard deviation of the differences in how runs end.

    Raises:
        DataError: if they share no seed.
    """
    losses, others = ends(variant), ends(base)
    changes = [losses[seed] - others[seed] for seed in losses if seed in others]
    if not changes:
        raise DataError(f"{variant['name']} and {base['name']} have no seed in common")
    return fmean(changes), stdev(changes) if len(changes) > 1 else None


def measured(parts: Mapping[str, Kept]) -> str:
    """When and where comparisons were made, and the files that have all their losses."""
    when = {f"{p['measured']} on {p['machine']}, torch {p['torch']}": None for p in parts.values()}
    files = ", ".join(f"[{name}.json](results/{name}.json)" for name in parts)
    return f"Measured {'; '.join(when)}. All losses: {files}."
