"""A table of finished runs from their folders: `python -m benchmarks.recipes checkpoints/NAME ...`.

Prints Markdown: exact losses in nats per character, and the training time (without validations and
saving), from the logs of the runs.
"""

import csv
import sys
from pathlib import Path

import torch
import yaml

from makemoe.checkpoint.inference import load_for_inference

COLUMNS = (
    "run",
    "parameters, active",
    "val loss, end",
    "val loss, best (step)",
    "training split, end",
    "training time",
)


def row(folder: Path) -> str:
    """One line for a run."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    validated = [r for r in rows if r["val_loss"]]
    best, end = min(validated, key=lambda r: float(r["val_loss"])), validated[-1]
    train_split = f"{float(end['train_split_loss']):.4f}" if "train_split_loss" in end else ""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    tokens_a_step = settings["data"]["batch_size"] * settings["model"]["block_size"]
    steps, seconds = 0, 0.0
    for r in rows:
        if r["tokens_per_second"]:
            interval, steps = int(r["step"]) - steps, int(r["step"])
            seconds += interval * tokens_a_step / float(r["tokens_per_second"])
    return (
        f"| {folder.name} | {count(folder)} | {float(end['val_loss']):.4f} "
        f"| {float(best['val_loss']):.4f} ({best['step']}) | {train_split} "
        f"| {seconds / 60:.1f} min, {1000 * seconds / steps:.0f} ms per step |"
    )


def count(folder: Path) -> str:
    """Parameters in total and active per token."""
    counted = load_for_inference(folder / "last.ckpt")[0].count_parameters()
    return f"{counted.total:,}, {counted.active:,}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for name in sys.argv[1:]:
        print(row(Path(name)))
