"""Times writing and reading a checkpoint against `torch.save` and `torch.load`."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Bench, Run
from benchmarks.models import RECIPE, TINY, Size, settings
from benchmarks.report import Result
from makemoe.checkpoint import format as files
from makemoe.checkpoint.seal import read_seal
from makemoe.files import replacing
from makemoe.model.transformer import MoETransformer


def checkpoint(bench: Bench) -> list[Result]:
    """Write and read a checkpoint of the recipe, checked and with its checksum, against torch's."""
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder) / "ours.ckpt", Path(folder) / "plain.ckpt"
        content = recipes_checkpoint(bench.choose(RECIPE, TINY))
        bench.say("checkpoint: writing and reading")
        runs: list[Run] = [
            partial(files.write, content, path),
            partial(write_plainly, content, plain),
            partial(read, path),
            partial(read_plainly, path),
            partial(verify, path),
        ]
        times = [sorted(taken)[len(taken) // 2] for taken in bench.alternate(runs)]
        megabytes = path.stat().st_size / 1e6
    writing, writing_theirs, reading, reading_theirs, checksum = (1000 * s for s in times)
    note = f"the checksum takes {checksum:.0f} ms, {1000 * megabytes / checksum:.0f} MB/s"
    return [
        Result(
            f"writing a checkpoint of {megabytes:.0f} MB",
            ours=writing,
            against="torch.save, atomic and synced",
            theirs=writing_theirs,
            longer=True,
        ),
        Result(
            f"reading a checkpoint of {megabytes:.0f} MB",
            ours=reading,
            against="torch.load, mapped, and every weight read",
            theirs=reading_theirs,
            longer=True,
            note=note,
        ),
    ]


def recipes_checkpoint(size: Size) -> dict[str, Any]:
    """Weights of the recipe and AdamW's two moments of each, as a checkpoint holds them."""
    weights = MoETransformer(**settings(size)).state_dict()
    moments = {
        number: {"exp_avg": torch.randn_like(weight), "exp_avg_sq": torch.rand_like(weight)}
        for number, weight in enumerate(weights.values())
    }
    content = {
        "state_dict": {f"net.{name}": weight for name, weight in weights.items()},
        "optimizer_states": [{"state": moments}],
    }
    files.stamp(content, None)
    return content


def write_plainly(content: dict[str, Any], path: Path) -> None:
    """The same without a checksum."""
    with replacing(path) as file:
        torch.save(content, file)


def read(path: Path) -> None:
    """Read with checks and checksum; the content is no time, so it is not returned."""
    files.read(path)


def read_plainly(path: Path) -> None:
    """Load as torch does, and read what is mapped, as copying it into a model would."""
    content = torch.load(path, weights_only=True, mmap=True)
    states = content["optimizer_states"][0]["state"].values()
    for tensor in (*content["state_dict"].values(), *(t for s in states for t in s.values())):
        tensor.sum()


def verify(path: Path) -> None:
    """The checksum only."""
    with path.open("rb") as file:
        assert read_seal(file)
