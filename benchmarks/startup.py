"""Times `makemoe predict` from the shell."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.measure import Bench, resident_mb
from benchmarks.report import Goal, Result

MAKEMOE = [sys.executable, "-m", "makemoe"]
IMPORTS = [sys.executable, "-c", "import torch, lightning; print('here', flush=True)"]
RECIPE_FILE = Path(__file__).parents[1] / "configs" / "makemoe.yaml"
CHARACTERS = 500
CPU = ["--trainer.accelerator", "cpu"]
SMALL = ["--model.n_layer", "1", "--model.n_embd", "8", "--trainer.limit_val_batches", "1"]


def predict(bench: Bench) -> list[Result]:
    """Time to the first character and to 500, against importing torch and lightning."""
    seconds_to_first: list[float] = []
    peaks: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench.say("predict: one step of training, for a checkpoint")
        train_one_step(Path(folder), bench.choose([], SMALL))
        length = bench.choose(CHARACTERS, 5)
        command = [*MAKEMOE, "predict", "--ckpt_path", "last", "--max_new_tokens", str(length)]

        def ours() -> float:
            ended = run(command, folder)
            seconds_to_first.append(ended.first_s)
            peaks["ours"] = ended.peak_mb
            return ended.all_s

        def imports() -> float:
            ended = run(IMPORTS, folder)
            peaks["imports"] = ended.peak_mb
            return ended.all_s

        bench.say("predict / import torch, lightning")
        times = bench.alternate([ours, imports])
    mine, theirs = map(median, times)
    first = median(seconds_to_first[-len(times[0]) :])  # without the warm-up
    against, peak_mb = "import torch, lightning", (peaks["ours"], peaks["imports"])
    return [
        Result("predict, to 1 character", "float32", first, against, theirs, "s", longer=True),
        Result(
            f"predict, to {length} characters",
            "float32",
            mine,
            against,
            theirs,
            "s",
            Goal("<=", 1.5),
            longer=True,
            peak_mb=peak_mb,
        ),
    ]


def train_one_step(folder: Path, changes: list[str], config: Path = RECIPE_FILE) -> None:
    """A checkpoint of a config with these changes, created as a user would."""
    options = ["--data.corpus", "sample", "--trainer.max_steps", "1", "--run.sample_tokens", "0"]
    done = subprocess.run(
        [*MAKEMOE, "fit", "--config", str(config), *options, *CPU, *changes],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"makemoe fit: {done.stderr.strip().splitlines()[-1]}")


class Ended(NamedTuple):
    """Seconds from the start to the first byte on standard output and to the end; peak MB."""

    first_s: float
    all_s: float
    peak_mb: float | None


def run(command: list[str], folder: str) -> Ended:
    """Run a command to its end."""
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first_s = peak_mb = None
        while process.stdout.read(4096):
            first_s = first_s or time.perf_counter() - begin
            # Read while it runs, because the values are gone afterwards.
            peak_mb = resident_mb("VmHWM", process.pid) or peak_mb
        said = process.stderr.read().decode()
    if process.returncode or first_s is None:
        raise RuntimeError(f"{command[-1]}: {said.strip().splitlines()[-1:]}")
    return Ended(first_s, time.perf_counter() - begin, peak_mb)
