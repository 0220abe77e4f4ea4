"""Every field of a real checkpoint, with every hostile value in its place.

`make fuzz` prints the whole table, which docs/reliability.md shows.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import TINY, script
from scripts import Options

from makemoe.checkpoint.format import Checkpoint, read, write
from makemoe.checkpoint.held import OF_TORCH, FreeText, Part, Reader
from makemoe.checkpoint.inference import load_for_inference
from makemoe.cli.held import annotations, checked_settings
from makemoe.errors import CheckpointError, MakeMoEError

CODE = "{class_path: stranger.Stranger, init_args: {a: 1}}"
HOSTILE: dict[str, Any] = {
    "nothing": None,
    "a class of the working folder": "stranger.Stranger",
    "a class in YAML": CODE,
    "a part that is a stranger": {"class_path": "stranger.Stranger", "init_args": {}},
    "a function of ours": "makemoe.cli.main",
    "a function as a part": {"class_path": "makemoe.cli.main", "init_args": {"argv": ["fit"]}},
    "a logger": {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "x"},
    },
    "a schedule of functions": {
        "class_path": "torch.optim.lr_scheduler.LambdaLR",
        "init_args": {"lr_lambda": CODE},
    },
    "the name of a file": "my.yaml",
    "a negative number": -7,
    "an absurd number": 10**30,
    "a large number": 10**12,
    "not a number": math.nan,
    "true": True,
    "a list": [CODE, None, 3],
    "a dictionary": {"os.system": CODE},
    "a tensor of another shape": torch.zeros(3, 1, 2),
    "a tensor of integers": torch.zeros(2, dtype=torch.int64),
    "a tensor that pretends to be large": torch.zeros(1).expand(1 << 40),
    "bytes": b"\x80\x04",
    "deep": (lambda make: make(make, 100))(lambda make, n: [make(make, n - 1)] if n else []),
}
Where = tuple[Any, ...]


def fields(value: Any, where: Where = ()) -> Iterator[Where]:
    """Where every value of a checkpoint stands, containers too."""
    if where:
        yield where
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple):
        items = enumerate(value)  # type: ignore[assignment]
    for key, inner in items:
        yield from fields(inner, (*where, key))


def with_value(value: Any, where: Where, hostile: Any) -> Any:
    """A copy with one field replaced; what is not on the way is shared."""
    if not where:
        return hostile
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[where[0]] = with_value(copy[where[0]], where[1:], hostile)
    return copy


def strangers_in(value: Any) -> Iterator[Any]:
    """What of checked settings is neither plain nor a class that may be named."""
    if isinstance(value, Part):
        if not value.cls.__module__.startswith("makemoe.") and value.path not in OF_TORCH:
            yield value.cls
        yield from strangers_in(value.init_args)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strangers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strangers_in(inner)
    elif not isinstance(value, bool | int | float | FreeText | type(None)) and value not in WORDS:
        yield value


WORDS = {
    *("auto", "loop", "padded", "rounded", "grouped", "position", "weight", "relu", "gelu", "silu"),
    *("sigmoid", "softmax", "32-true"),
}


def outcome(path: Path, checkpoint: Checkpoint) -> str:
    """What comes of using a checkpoint; only our own errors may be raised."""
    write(checkpoint, path)
    try:
        read(path)
    except CheckpointError:
        return "refused when read"
    try:
        held = checked_settings(read(path), Reader(str(path)), dict.fromkeys(annotations(), False))
        assert not list(strangers_in(held))
        load_for_inference(path)
    except MakeMoEError:
        return "refused when used"
    return "no harm"


def outcomes(folder: Path, whole: Checkpoint, stride: int) -> Counter[tuple[str, str]]:
    counted: Counter[tuple[str, str]] = Counter()
    for number, (where, (name, hostile)) in enumerate(
        (where, item) for where in fields(whole) for item in HOSTILE.items()
    ):
        if number % stride == 0:
            try:
                found = outcome(folder / "my.ckpt", with_value(whole, where, hostile))
            except Exception as error:
                raise AssertionError(f"{name} at {where}: {error!r}") from error
            counted[name, found] += 1
    return counted


def small_run(folder: Path) -> Checkpoint:
    flags = ("--model.router=BiasedTopKRouter", "--model.balancers+=BiasBalance")
    flags += ("--model.averaging=ExponentialAverage",)
    schedule = ("--model.lr_scheduler=WarmupCosine", "--model.lr_scheduler.warmup_steps=2")
    total = ("--model.lr_scheduler.total_steps=9", "--trainer.max_steps=2", "--run.name=tiny")
    ended = script("fit", *TINY, *flags, *schedule, *total, cwd=folder)
    assert ended.status == 0, ended.err
    return read(folder / "checkpoints/tiny/last.ckpt")


def test_no_field_of_a_checkpoint_runs_code_or_raises_what_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger.py").write_text("raise SystemExit('it was imported')\n")
    (tmp_path / "my.yaml").write_text("class_path: stranger.Stranger\n")
    whole = small_run(tmp_path)
    # A prime, so that every field meets other values than the one before it.
    counted = outcomes(tmp_path, whole, stride=47)
    assert "stranger" not in sys.modules
    assert {found for _, found in counted} == {"refused when read", "refused when used", "no harm"}


def main() -> None:
    """Every value in every field, as a table."""
    import os
    import tempfile

    Options("checkpoint.test_hostile_fields", __doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.append(folder)
        Path("stranger.py").write_text("raise SystemExit('it was imported')\n")
        whole = small_run(Path(folder))
        counted = outcomes(Path(folder), whole, stride=1)
    ways = ("refused when read", "refused when used", "no harm")
    print("| in place of each field | " + " | ".join(ways) + " |\n|---|---|---|---|")
    for name in HOSTILE:
        print(f"| {name} | " + " | ".join(str(counted[name, way]) for way in ways) + " |")


if __name__ == "__main__":
    main()
