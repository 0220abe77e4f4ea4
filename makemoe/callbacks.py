"""What goes on beside training: saving, stopping cleanly, samples, speed, a progress bar."""

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only
from tqdm import tqdm

from makemoe.data.datamodule import data_of
from makemoe.model.generate import Sampler, generate
from makemoe.training.checkpoint import KEY, remove_partial
from makemoe.training.module import LanguageModel


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which the run resumes as if it had never stopped.

    Written every few steps, when the run is stopped, and at its end; where a validation is due at
    the same step, after it, so that resuming neither repeats nor skips it. A `Checkpoint`, because
    Lightning calls those last: what the others make of a validation is saved too.

    Args:
        folder: of the run.
        every_n_steps: optimizer steps between two writes.
        settings: plain values the checkpoint carries along (trainer, seed, run).
    """

    def __init__(self, folder: Path, every_n_steps: int, settings: dict[str, Any]) -> None:
        self.path, self.every_n_steps, self.settings = folder / "last.ckpt", every_n_steps, settings
        self.saved_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            remove_partial(self.path.parent)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint.setdefault(KEY, {})["settings"] = self.settings

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        ended_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ended_step and self.is_due(trainer) and not validates_now(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.is_due(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self.saved_step:
            self.save(trainer)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether this step is one to save at."""
        step = trainer.global_step
        return step != self.saved_step and (
            step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop
        )

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint; all processes take part."""
        trainer.save_checkpoint(self.path)
        self.saved_step = trainer.global_step


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, of the lowest validation loss; also in a run's folder that was moved.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder, "best", monitor="val_loss", save_top_k=1, enable_version_counter=False
        )
        self.path = str(Path(folder).absolute() / "best.ckpt")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best there was, if it is in this folder; Lightning forgets a moved one."""
        score = state_dict["best_model_score"]
        if score is not None and Path(self.path).exists():
            self.best_model_score = self.kth_value = self.current_score = score
            self.best_model_path = self.kth_best_model_path = self.path
            self.best_k_models = {self.path: score}


def validates_now(trainer: Trainer) -> bool:
    """Whether a validation follows the training batch that has just ended."""
    loop = trainer.fit_loop.epoch_loop
    if not trainer.enable_validation or not isinstance(trainer.val_check_batch, int):
        return False
    in_epoch = trainer.check_val_every_n_epoch is not None
    batches = loop.batch_idx if in_epoch else loop.total_batch_idx
    return (batches + 1) % trainer.val_check_batch == 0


class StopOnSignal(Callback):
    """Ends a run at the next step on Ctrl-C or SIGTERM, saved; a second signal ends it at once.

    The handler only sets a flag: collectives inside a signal handler can deadlock. The processes
    agree on the flag every few steps.

    Attributes:
        received: the signal, or None.
    """

    AGREE_EVERY = 10

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread: whoever runs us handles signals
                self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = signal.Signals(number)

    # Before LastCheckpoint's hook of the same name, which then finds the step worth saving.
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stop = self.received is not None
        if trainer.world_size > 1:
            if trainer.global_step % self.AGREE_EVERY:
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            self.received = self.received or signal.SIGTERM
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class TextSample(Callback):
    """Samples a text at each validation, for TensorBoard and `samples.txt`.

    Args:
        folder: of the run.
        prompt: what the text begins with.
        tokens: how many to add.
        seed: of the draws; the same at each validation, so that only the model changes.
    """

    def __init__(self, folder: Path, prompt: str, tokens: int, seed: int) -> None:
        self.path, self.prompt = folder / "samples.txt", prompt
        self.tokens, self.seed = tokens, seed

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, LanguageModel)
        text = self.sample(trainer, pl_module)
        step = trainer.global_step
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"==== step {step}\n{text}\n\n")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                indented = "".join(f"    {line}\n" for line in text.splitlines())
                logger.experiment.add_text("sample", indented, step)

    def sample(self, trainer: Trainer, module: LanguageModel) -> str:
        """The prompt and what the model makes of it."""
        tokenizer = data_of(trainer).tokenizer
        net, was_training = module.net.eval(), module.training
        prompt = tokenizer.encode(self.prompt).tolist()
        new = generate(net, [prompt], self.tokens, Sampler([self.seed]))[0]
        net.train(was_training)
        text: str = tokenizer.decode(prompt + new)
        return text


class Throughput(Callback):
    """Logs `tokens_per_second` over all processes, validations and saving not counted."""

    def __init__(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self.since: float | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.since is None:
            self.since = time.perf_counter()

    # Last of the callbacks: what they take is counted, what comes after (validation) is not.
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
        if pl_module.logs_now() or validates_now(trainer):
            now = time.perf_counter()
            self.seconds += now - self.since
            self.since = None
        if pl_module.logs_now():
            rate = self.tokens / self.seconds
            pl_module.log("tokens_per_second", rate, prog_bar=True)
            self.seconds, self.tokens = 0.0, 0


class StepProgress(ProgressBar):
    """A bar over the steps of a run, or over the windows of an evaluation, on standard error."""

    REFRESH_S = 0.2

    def __init__(self) -> None:
        super().__init__()
        self.bar: Any = None
        self.outer: Any = None
        self.enabled = True

    def enable(self) -> None:
        """Show the bar."""
        self.enabled = True

    def disable(self) -> None:
        """Hide the bar; processes other than the first do."""
        self.enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self.enabled:
            tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def open(self, what: str, total: int | None, unit: str, at: int = 0) -> Any:
        """A bar of `total` units, standing at `at`."""
        return tqdm(
            desc=what,
            total=total,
            initial=at,
            unit=unit,
            # In a log file a bar within a bar is only noise, and a line now and then is enough.
            disable=not self.enabled or (self.bar is not None and not sys.stderr.isatty()),
            mininterval=self.REFRESH_S if sys.stderr.isatty() else 10,
            leave=what == "train",
            dynamic_ncols=True,
            file=sys.stderr,
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
        """Losses and speed in a few words."""
        words = {
            "train_loss": "loss {:.3f}",
            "val_loss": "val {:.3f}",
            "tokens_per_second": "{:,.0f} tokens/s",
        }
        metrics = trainer.progress_bar_metrics
        return ", ".join(f.format(float(metrics[k])) for k, f in words.items() if k in metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.set_postfix_str(self.figures(trainer), refresh=True)
        self.bar.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        for bar in (self.bar, self.outer):
            if bar is not None:
                bar.close()  # what is said of the exception gets a line of its own

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


class Introduction(Callback):
    """Says, at the start of a fit, what is trained, on what, and where it is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        net, data = pl_module.net, data_of(trainer)
        count = net.count_parameters()
        device = torch.device(pl_module.device)
        batch = data.batch_size * net.block_size * trainer.accumulate_grad_batches
        lines = [
            f"model   {count.total:,} parameters, {count.active:,} active per token "
            f"({net.top_k} of {net.num_experts} experts)",
            f"data    {data.corpus}: {data.split:,} tokens to train on, "
            f"{len(data.ids) - data.split:,} to validate, {net.vocab_size} symbols",
            f"steps   {trainer.global_step:,} to {trainer.max_steps:,}, {batch:,} tokens each, "
            f"{trainer.world_size} x {device.type}, {trainer.precision}",
            f"folder  {self.folder}",
        ]
        print("\n".join(lines), file=sys.stderr)
