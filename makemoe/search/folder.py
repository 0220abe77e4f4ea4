"""The folder of a comparison: found by what it compares, and locked while it is trained.

checkpoints/<name>/plan.json         what is trained
                   compare.json      what came of it: the data of the table and of the picture
                   curves.png        the learning curves
                   <variant>/seed-N       a run
                   <variant>/seed-N.json  how it ended
                   <variant>/seed-N.log   what it printed
                   .lock             while a process trains the comparison
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from makemoe.errors import CheckpointError, UsageError, WriteError
from makemoe.files import read_whole, remove_partial, replacing
from makemoe.locks import Lock
from makemoe.run import LOCK
from makemoe.search.plan import Plan, Variant, difference, variant_of

PLAN, RESULTS, PICTURE = "plan.json", "compare.json", "curves.png"

NUMBER = re.compile("-([2-9]|[1-9][0-9]{1,8})")
"""What stands behind the default name in the name of a folder."""

MOST_BYTES = 64 << 20
"""Largest file of JSON that is read; makemoe writes smaller ones."""


class CompareFolder(AbstractContextManager["CompareFolder"]):
    """The folder of a comparison, locked while the block runs.

    Args:
        path: the folder; it is created when the block begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock(path / LOCK)

    def __enter__(self) -> "CompareFolder":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self._lock.take():
                raise CheckpointError(
                    f"{self.path} is being trained by another process: wait until it ends, or "
                    "give another --run.name"
                )
            remove_partial(self.path)
        except OSError as error:
            raise CheckpointError(
                f"{WriteError(f'in the folder {self.path}', error)}; choose another folder: "
                "--run.root DIR"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release(remove=True)
        with suppress(OSError):  # not empty
            self.path.rmdir()

    def write_plan(self, plan: Plan) -> None:
        """Add the plan to the one that is there: earlier variants stay as they are.

        Raises:
            UsageError: if another process has meanwhile made the folder another comparison's.
        """
        if why := conflict(plan, self.path):
            raise UsageError(f"{self.path} {why}: give another --run.name")
        earlier = {variant.name: variant for variant in variants_in(self.path)}
        earlier |= {variant.name: variant for variant in plan.variants}
        whole = Plan(tuple(earlier.values()), plan.seeds, plan.equal)
        write_json(self.path / PLAN, whole.as_plain())

    def write_results(self, results: dict[str, Any]) -> None:
        """Replace the data of the table."""
        write_json(self.path / RESULTS, results)


def numbered(root: str, default: str) -> Iterator[Path]:
    """The folders that a comparison without a name may have: the default, or with a number."""
    yield Path(root) / default
    yield from (Path(root) / f"{default}-{number}" for number in count(2))


def existing(root: str, name: str | None, default: str) -> list[Path]:
    """The folders in which a comparison may have been begun, by number; some may be missing."""
    if name is not None:
        return [Path(root) / name]
    found = {}
    for path in Path(root).glob(f"{glob.escape(default)}*"):
        number = path.name.removeprefix(default)
        if not number:
            found[1] = path
        elif NUMBER.fullmatch(number):
            found[int(number[1:])] = path
    return [found[number] for number in sorted(found)]


def known_variants(root: str, name: str | None, default: str) -> list[Variant]:
    """The variants in all folders in which a comparison may have been begun."""
    return [one for path in existing(root, name, default) for one in variants_in(path)]


def choose(plan: Plan, root: str, name: str | None, default: str) -> Path:
    """The folder of a plan: the one in which it was begun, or a new one.

    Raises:
        UsageError: if the named folder holds something else.
    """
    if name is not None:
        path = Path(root) / name
        if why := conflict(plan, path):
            raise UsageError(f"{path} {why}: give another --run.name")
        return path
    begun = [path for path in existing(root, name, default) if variants_in(path)]
    free = (path for path in numbered(root, default) if path not in begun)
    return next(path for path in chain(begun, free) if conflict(plan, path) is None)


def conflict(plan: Plan, path: Path) -> str | None:
    """Why a plan cannot go on in a folder; None if it can."""
    earlier = {variant.name: variant for variant in variants_in(path)}
    if not earlier:
        holds = path.exists() and (not path.is_dir() or any(n != LOCK for n in os.listdir(path)))
        return "already exists, and is no comparison" if holds else None
    for variant in plan.variants:
        if variant.name in earlier:
            before = earlier[variant.name]
            changed = difference(before.settings, variant.settings)
            if changed is not None:
                return f"holds {variant.name} with other settings ({changed})"
    if not any(variant.name in earlier for variant in plan.variants):
        return "holds another comparison"
    return None


def variants_in(path: Path, name: str = PLAN) -> list[Variant]:
    """The variants of a plan in a folder; none if it has none."""
    plain = read_json(path / name)
    try:
        return [variant_of(one) for one in plain["variants"]]
    except (KeyError, TypeError):
        return []


def digest(path: Path) -> str:
    """The SHA-256 of a small file; empty if it cannot be read."""
    try:
        return hashlib.sha256(read_whole(path, MOST_BYTES)).hexdigest()
    except OSError:
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """A mapping in a file; empty if there is none."""
    try:
        found = json.loads(read_whole(path, MOST_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file; NaN is not written, because it is not JSON."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    with replacing(path) as file:
        file.write(f"{text}\n".encode())
