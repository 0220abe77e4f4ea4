"""Times training until the original's final loss: our recipe, and the tutorial's plainly.

Half an hour on two CPU cores, and it needs tiny Shakespeare: measured only if it is named.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F

from benchmarks.measure import FLOAT32, Bench
from benchmarks.models import DROPOUT, RECIPE, TINY, Size, ours
from benchmarks.plain_moe import PlainMoE, copy_of
from benchmarks.report import Goal, Result
from benchmarks.startup import SMALL
from makemoe.data.datamodule import TextDataModule
from makemoe.data.windows import IGNORE

LOSS = 1.7468
"""Final validation loss of the tutorial's code, nats per character."""

EVERY = 100
"""Steps between validations of the plain model, as in the tutorial."""

MOST_STEPS = 10_000
"""Twice as many steps as the tutorial takes; the plain model does not need more."""

CONFIG = Path(__file__).parents[1] / "configs" / "laptop.yaml"
STEPS = 340
"""Steps of our recipe in which it falls below the loss, with a schedule of that length."""

VALIDATED = re.compile(r"best val_loss ([\d.]+) nats")


def time_to_loss(bench: Bench) -> list[Result]:
    """Seconds until the validation loss is 1.7468: our laptop recipe, the tutorial's plainly."""
    loss = bench.choose(LOSS, 5.0)
    bench.say(f"until val_loss {loss}: makemoe fit")
    corpus, steps, more = bench.choose(("tinyshakespeare", STEPS, []), ("sample", 2, SMALL))
    mine, reached = fit(corpus, steps, more)
    if reached > loss:
        raise ValueError(f"val_loss {reached} after {STEPS} steps, not yet {loss}")
    bench.say(f"until val_loss {loss}: the tutorial's recipe, half an hour")
    size, every = bench.choose(RECIPE, TINY), bench.choose(EVERY, 1)
    theirs, steps = train_plainly(corpus, size, every, loss)
    return [
        Result(
            f"training until val_loss {loss:g}",
            FLOAT32,
            mine,
            f"the tutorial's recipe, plain, {FLOAT32}",
            theirs,
            unit="s",
            goal=Goal(">=", 10),
            note=f"val_loss {reached:g} at the end of the whole command; plain: {steps} steps, "
            "without its validations",
        )
    ]


def fit(corpus: str, steps: int, more: Sequence[str]) -> tuple[float, float]:
    """Seconds of the whole command, from its start to its end, and its validation loss."""
    lengths = {
        "trainer.max_steps": steps,
        "trainer.val_check_interval": steps,
        "model.lr_scheduler.init_args.total_steps": steps,
        "model.lr_scheduler.init_args.warmup_steps": steps // 20,
    }
    words = ["--config", str(CONFIG), "--data.corpus", corpus, "--trainer.accelerator", "cpu"]
    words += more
    words += [word for name, value in lengths.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "makemoe", "fit", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - begin
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1])
    found = VALIDATED.search(ended.stderr)
    assert found is not None, ended.stderr
    return seconds, float(found[1])


def train_plainly(corpus: str, size: Size, every: int, loss: float) -> tuple[float, int]:
    """Seconds and number of the plain model's steps until its validation loss; AdamW at 1e-3."""
    data = TextDataModule(corpus, block_size=size.block_size, batch_size=size.batch_size)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    torch.manual_seed(1337)
    model = copy_of(ours(size, vocab_size=data.vocab_size), DROPOUT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = iter(data.train_dataloader())
    seconds = 0.0
    for steps in range(every, MOST_STEPS + 1, every):
        begin = time.perf_counter()
        for _ in range(every):
            x_BT, y_BT = next(batches)
            optimizer.zero_grad()
            F.cross_entropy(model(x_BT).flatten(0, 1), y_BT.flatten()).backward()
            optimizer.step()
        seconds += time.perf_counter() - begin
        if (reached := validation_loss(model, data)) <= loss:
            return seconds, steps
    raise ValueError(f"the plain model's val_loss after {MOST_STEPS} steps is {reached:.4f}")


@torch.no_grad()
def validation_loss(model: PlainMoE, data: TextDataModule) -> float:
    """The exact loss on the validation split, nats per token; leaves the model in training mode."""
    model.eval()
    (batches,) = data.val_dataloader()
    total, tokens = 0.0, 0
    for x_BT, y_BT in batches:
        total += F.cross_entropy(
            model(x_BT).flatten(0, 1), y_BT.flatten(), ignore_index=IGNORE, reduction="sum"
        ).item()
        tokens += int((y_BT != IGNORE).sum())
    model.train()
    return total / tokens
