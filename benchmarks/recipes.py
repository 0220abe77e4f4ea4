"""A table of finished runs from their folders: `python -m benchmarks.recipes checkpoints/NAME ...`.

Prints Markdown: exact losses in nats per character, and the training time (without validations and
saving), from the logs of the runs.
"""

import csv
from pathlib import Path

import torch
import yaml

from benchmarks.scripts import Options, folder_of_run, run
from makemoe.checkpoint.inference import load_for_inference
from makemoe.errors import DataError

PROG = "python -m benchmarks.recipes"
COLUMNS = (
    "run",
    "parameters (active)",
    "val loss, end",
    "val loss, best (step)",
    "training split, end",
    "training time",
)


def row(folder: Path) -> str:
    """One line for a run; DataError if it has not validated yet."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    validated = [r for r in rows if r["val_loss"]]
    if not validated:
        raise DataError(f"{folder} has no validation loss yet: let the run validate")
    best, end = min(validated, key=lambda r: float(r["val_loss"])), validated[-1]
    train_split = f"{float(end['train_split_loss']):.4f}" if "train_split_loss" in end else ""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    tokens_a_step = settings["data"]["batch_size"] * settings["model"]["block_size"]
    steps, seconds = 0, 0.0
    for r in rows:
        if r["tokens_per_second"]:
            interval, steps = int(r["step"]) - steps, int(r["step"])
            seconds += interval * tokens_a_step / float(r["tokens_per_second"])
    time = f"{seconds / 60:.1f} min, {1000 * seconds / steps:.0f} ms per step" if steps else ""
    return (
        f"| {folder.name} | {count(folder)} | {float(end['val_loss']):.4f} "
        f"| {float(best['val_loss']):.4f} ({best['step']}) | {train_split} | {time} |"
    )


def count(folder: Path) -> str:
    """Parameters in total and active per token."""
    counted = load_for_inference(folder / "last.ckpt")[0].count_parameters()
    return f"{counted.total:,} ({counted.active:,})"


def main() -> None:
    """Print the table."""
    parser = Options(PROG, description="Print a table of finished runs, in Markdown.")
    parser.add_argument("runs", metavar="RUN", type=folder_of_run, nargs="+", help="its folder")
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    rows = [row(folder) for folder in runs]
    print("| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", *rows, sep="\n")


if __name__ == "__main__":
    run(PROG, main)
