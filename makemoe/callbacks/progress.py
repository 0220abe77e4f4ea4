"""What the terminal shows of a run: a summary, the progress bar, the speed."""

import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning_utilities.core.rank_zero import rank_zero_only
from tqdm import tqdm

from makemoe.callbacks.saving import saves_now
from makemoe.data.datamodule import TextDataModule, data_of
from makemoe.model.moe import MoELayer
from makemoe.sizes import with_prefix
from makemoe.training.module import LanguageModel
from makemoe.training.peak import peak_of
from makemoe.training.steps import validates_now
from makemoe.training.work_done import WorkDone


class Introduction(Callback):
    """Prints a summary at the start of training: the model, the data, the steps, the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        net, data = pl_module.net, data_of(trainer)
        work, device = pl_module.done.work, torch.device(pl_module.device)
        batch = data.batch_size * net.block_size * trainer.accumulate_grad_batches
        with trainer.precision_plugin.train_step_context():
            backends = {
                part.chosen_backend() for part in net.modules() if isinstance(part, MoELayer)
            }
        experts = f"{net.top_k} of {net.num_experts} experts" if net.routers() else "no router"
        dispatch = f", dispatch {', '.join(backends)}" if backends else ""
        lines = [
            f"model   {work.parameters:,} parameters, {work.active:,} active per token "
            f"({experts}){dispatch}",
            f"data    {data.corpus}: {documents_of(data)}{data.split:,} tokens to train on, "
            f"{len(data.ids) - data.split:,} to validate, {net.vocab_size} symbols",
            f"steps   {steps_words(trainer.global_step, trainer.max_steps)}, "
            f"{batch:,} tokens each, "
            f"{pl_module.group.size} x {device.type}, {trainer.precision}",
            work_line(pl_module.done, (trainer.max_steps - trainer.global_step) * batch)
            + peak_words(peak_of(device, trainer.precision)),
            *capacity_line(net.architecture.capacity_factor, trainer.accumulate_grad_batches),
            *precision_line(device, str(trainer.precision)),
            f"folder  {self.folder}",
        ]
        print("\n".join(lines), file=sys.stderr)


def documents_of(data: TextDataModule) -> str:
    """How many documents are trained on and held out; nothing for one text."""
    if data.text.tokens.split is None:
        return ""
    training, held_out = data.text.tokens.documents
    return f"{training:,} and {held_out:,} documents, "


def steps_words(begin: int, end: int) -> str:
    """Which steps are trained; the end is negative if none is planned."""
    return f"{begin:,} to {end:,}" if end >= 0 else f"from {begin:,}"


def work_line(done: WorkDone, tokens: int) -> str:
    """What the run will have spent after so many more tokens; negative: no end is planned."""
    line = f"work    {with_prefix(done.work.flops)}FLOPs per token"
    if tokens < 0:
        return line
    flops = done.flops + tokens * done.work.flops
    return f"{line}, {done.tokens + tokens:,} tokens and {with_prefix(flops)}FLOPs in all"


def peak_words(peak: float | None) -> str:
    """The peak of a device, where it is known."""
    return "" if peak is None else f", at most {with_prefix(peak)}FLOP/s per device"


def capacity_line(factor: float | None, batches: int) -> list[str]:
    """What capacity counts in a step of several batches; empty where there is nothing to say."""
    if factor is None or batches == 1:
        return []
    return [
        f"drops   over {factor} of the mean load, counted in each of a step's {batches} batches "
        "by itself"
    ]


def precision_line(device: torch.device, precision: str) -> list[str]:
    """A hint, instead of Lightning's, that float32 is not what a GPU multiplies fastest."""
    exact = precision == "32-true" and torch.get_float32_matmul_precision() == "highest"
    if device.type != "cuda" or not exact or torch.cuda.get_device_capability(device) < (8, 0):
        return []
    return ["hint    this GPU multiplies faster in bf16 or TF32 than in float32: see docs/gpu.md"]


class LogLines:
    """A stream for a progress bar in a log file: each of its states is a line of its own.

    A bar goes back to the beginning of its line: another process's message would stand behind it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.encoding = stream, getattr(stream, "encoding", None)

    def write(self, text: str) -> None:
        """Write a state of the bar, without what erases the one before."""
        if state := text.strip():
            self.stream.write(state + "\n")

    def flush(self) -> None:
        """Flush the log."""
        self.stream.flush()


class StepProgress(ProgressBar):
    """A progress bar on standard error, over training steps or evaluation batches."""

    REFRESH_S = 0.2
    LOG_S = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.bar: Any = None
        self.outer: Any = None
        self.enabled = True

    def enable(self) -> None:
        """Show the bar."""
        self.enabled = True

    def disable(self) -> None:
        """Hide the bar, as all processes but the first do."""
        self.enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self.enabled:
            tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def open(self, what: str, total: int | None, unit: str, at: int = 0) -> Any:
        """Return a new bar of `total` units that starts at `at`."""
        in_log = not sys.stderr.isatty()
        return tqdm(
            desc=what,
            total=total,
            initial=at,
            unit=unit,
            # In a log file, nested bars are noise and an occasional line is enough.
            disable=not self.enabled or (self.bar is not None and in_log),
            mininterval=self.LOG_S if in_log else self.REFRESH_S,
            leave=what == "train",
            dynamic_ncols=True,
            file=LogLines(sys.stderr) if in_log else sys.stderr,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self.bar = self.open("train", total, "step", trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        if self.bar.disable:
            return
        assert isinstance(pl_module, LanguageModel)
        if pl_module.logs_now():
            self.bar.set_postfix_str(self.figures(trainer), refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def figures(self, trainer: Trainer) -> str:
        """Losses and speed as a short string."""
        words = {
            "train_loss": "loss {:.3f}",
            "val_loss": "val {:.3f}",
            "tokens_per_second": "{:,.0f} tokens/s",
            "mfu": "{:.1%} of peak",
        }
        metrics = trainer.progress_bar_metrics
        return ", ".join(f.format(float(metrics[k])) for k, f in words.items() if k in metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.set_postfix_str(self.figures(trainer), refresh=False)  # closing it shows it
        self.bar.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        for bar in (self.bar, self.outer):
            if bar is not None:
                bar.close()  # so that the error message starts on a new line

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = sum(n for n in trainer.num_val_batches if isinstance(n, int))
        self.outer, self.bar = self.bar, self.open("validate", total, "batch")

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self.bar.update()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()
        self.bar = self.outer

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = sum(n for n in trainer.num_test_batches if isinstance(n, int))
        self.bar = self.open("test", total, "batch")

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        self.bar.update()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()


class Throughput(Callback):
    """Logs the speed of training, without the time for validation and saving.

    `tokens_per_second` is that of all processes. `mfu` is the share of the devices' peak, from 0 to
    1, on GPUs whose peak is known (model FLOPs utilization, arXiv:2204.02311, appendix B).
    """

    def __init__(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self.since: float | None = None
        self.peak: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.peak = peak_of(torch.device(pl_module.device), trainer.precision)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.since is None:
            self.since = time.perf_counter()

    # This callback runs last but for saving: the time of the other callbacks counts.
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        assert self.since is not None
        self.tokens += pl_module.global_batch_size(len(batch[0])) * batch[0].shape[1]
        pauses = validates_now(trainer) or saves_now(trainer)
        if pauses and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # or the pause would include training
        if pauses or pl_module.logs_now():
            now = time.perf_counter()
            self.seconds += now - self.since
            self.since = None
        if pl_module.logs_now():
            rate = self.tokens / self.seconds
            pl_module.log("tokens_per_second", rate, prog_bar=True)
            if self.peak is not None:
                share = rate * pl_module.done.work.flops / (self.peak * pl_module.group.size)
                pl_module.log("mfu", share, prog_bar=True)
            self.seconds, self.tokens = 0.0, 0
