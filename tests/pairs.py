"""Pairs of fits that start at the same instant: `python tests/pairs.py 20` starts twenty.

Each fit must have a folder of its own, with nothing of another in it.
"""

import csv
import re
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from commandline import TINY
from nursery import MAKEMOE, Forked
from processes import ENVIRONMENT
from scripts import Options, positive

EACH_STEP = ("--trainer.val_check_interval=1", "--trainer.log_every_n_steps=1")


def start_pairs(folder: Path, pairs: int) -> list[str]:
    """What is wrong with what that many pairs, one after another, leave in one root."""
    faults, folders = [], []
    for pair in range(pairs):
        fits = []
        for number in (2 * pair, 2 * pair + 1):
            # Seed and steps tell in every file which of them wrote it.
            own = (f"--seed={number}", f"--trainer.max_steps={2 + number % 2}")
            with (folder / f"{number}.txt").open("w") as messages:
                command = [MAKEMOE, "fit", *TINY, *EACH_STEP, *own]
                process = Forked(command, folder, ENVIRONMENT, stderr=messages)
            fits.append((number, process))
        for number, process in fits:
            status, told = process.wait(timeout=300), (folder / f"{number}.txt").read_text()
            named = re.search(r"^folder  (.*)$", told, re.MULTILINE)
            if status or not named:
                faults.append(f"fit {number} ended with {status}: {told}")
                continue
            folders.append(folder / named.group(1))
            faults += faults_of(folders[-1], number, 2 + number % 2)
    there = sorted((folder / "checkpoints").iterdir())
    if sorted(folders) != there or len(there) != 2 * pairs:
        faults.append(f"{2 * pairs} fits said {sorted(folders)} and left {there}")
    return faults


def faults_of(run: Path, seed: int, steps: int) -> list[str]:
    """What in a run's folder is not of the fit with that seed and so many steps."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row["step"] for row in csv.DictReader(file)]
    config = yaml.safe_load((run / "config.yaml").read_text())
    each = [str(step) for step in range(1, steps + 1)]
    checks = {
        "config.yaml": (config["seed"], config["trainer"]["max_steps"]) == (seed, steps),
        "metrics.csv": rows == each,
        "samples.txt": re.findall(r"==== step (\d+)\n", (run / "samples.txt").read_text()) == each,
        "last.ckpt": torch.load(run / "last.ckpt", weights_only=True)["global_step"] == steps,
        "events": len(list(run.glob("events.*"))) == 1,
        "the folder": not [*run.glob(".*")],
    }
    return [
        f"{run}: {name} is not of fit {seed} alone" for name, good in checks.items() if not good
    ]


def main() -> int:
    """Start them; 1 if anything of two runs was mixed."""
    parser = Options("pairs", __doc__)
    parser.add_argument("count", type=positive, nargs="?", default=20, help="pairs (%(default)s)")
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as place:
        found = start_pairs(Path(place), count)
    print("\n".join(found) or f"{count} pairs: {2 * count} fits, {2 * count} folders, none mixed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
