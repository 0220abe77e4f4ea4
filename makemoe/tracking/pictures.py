"""Pictures of the routing at each validation."""

import importlib.util
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tqdm import tqdm

from makemoe.data.datamodule import data_of
from makemoe.data.windows import IGNORE, Batch
from makemoe.errors import CheckpointError
from makemoe.files import remove_partial, replacing
from makemoe.tracking.csv_logger import MetricsCSV, read_columns
from makemoe.training.affinity import PairCounts, SymbolCounts
from makemoe.training.module import LanguageModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COUNTS = 1 << 22
"""32 MiB of counts, allocated for each batch. A larger picture would be unreadable anyway."""


class RouterPictures(Callback):
    """Draws loads, symbols by expert, experts chosen together and curves at each validation.

    Writes PNG files to the run's folder, where each replaces the one before, and to TensorBoard,
    which keeps them all. Loads and curves are read from metrics.csv, so the pictures of a resumed
    run continue too. Without that logger these two are not drawn. All processes count; the first
    one draws.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "pictures"
        self.symbols: SymbolCounts | None = None
        self.pairs: PairCounts | None = None
        self.draws = self.told = False
        self.layers: list[int] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        # All processes must agree, because they sum their counts.
        here = importlib.util.find_spec("matplotlib") is not None
        self.draws = trainer.strategy.broadcast(here)
        if not self.draws:
            self.tell(trainer, "no pictures without matplotlib: pip install 'makemoe[plots]'")
            return
        if trainer.is_global_zero:
            remove_partial(self.folder)
        net = pl_module.net
        self.layers = list(net.routers())
        L, V, E = len(self.layers), net.vocab_size, net.num_experts
        if not L:
            return
        if L * V * E > MOST_COUNTS:
            self.tell(
                trainer,
                f"the picture of {V:,} symbols by {L * E:,} experts is too large and is not drawn",
            )
        else:
            self.symbols = SymbolCounts(L, V, E).to(pl_module.device)
        if 1 < net.top_k < E and L * E * E <= MOST_COUNTS:
            self.pairs = PairCounts(L, E).to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self.draws or dataloader_idx:
            return
        x_BT, y_BT = batch
        counted_N = (y_BT != IGNORE).flatten()
        if self.symbols is not None:
            self.symbols.update(outputs["routings"], x_BT.flatten(), counted_N)
        if self.pairs is not None:
            self.pairs.update(outputs["routings"], counted_N)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.draws or trainer.state.fn != "fit":
            return
        counts = {
            name: metric.compute().cpu().numpy()
            for name, metric in (("symbols", self.symbols), ("pairs", self.pairs))
            if metric is not None
        }
        for metric in (self.symbols, self.pairs):
            if metric is not None:
                metric.reset()
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        for name, figure in self.figures(trainer, pl_module, counts):
            canvas: Any = figure.canvas
            png = io.BytesIO()
            canvas.print_png(png)
            path = self.folder / f"{name}.png"
            with self.attempting(trainer, f"write {path}"):
                write(path, png)
            log(trainer, name, png, canvas.get_width_height())

    @contextmanager
    def attempting(self, trainer: Trainer, what: str) -> Iterator[None]:
        """Skip what cannot be read or written; report only the first failure."""
        try:
            yield
        except (OSError, CheckpointError) as error:
            why = getattr(error, "strerror", None) or error
            self.tell_once(trainer, f"cannot {what}: {why}; training continues")

    def figures(
        self, trainer: Trainer, module: LightningModule, counts: dict[str, Any]
    ) -> Iterator[tuple[str, "Figure"]]:
        """The pictures for which there is data, by name."""
        # Imported here, so that only the process that draws loads matplotlib.
        try:
            from makemoe.pictures import draw_curves, draw_load, draw_pairs, draw_symbols
        except ImportError as error:  # it is installed, but for another NumPy, for example
            self.tell_once(trainer, f"no pictures, because matplotlib cannot be used: {error}")
            return

        assert isinstance(module, LanguageModel)
        net, step = module.net, trainer.global_step
        logger = next((one for one in trainer.loggers if isinstance(one, MetricsCSV)), None)
        columns = None
        if logger is not None:
            with self.attempting(trainer, f"read {logger.path}"):
                columns = read_columns(logger.path)
        if columns is not None:
            yield "curves", draw_curves(columns, step)
        if columns is not None and self.layers:
            L, E = len(self.layers), net.num_experts
            names = [f"val_router/layer_{i}/load_{e}" for i in self.layers for e in range(E)]
            load_SLE = np.stack([columns[name] for name in names], -1).reshape(-1, L, E)
            validated_S = ~np.isnan(columns["val_router/max_vio"])
            steps_S = columns["step"][validated_S].astype(np.int64)
            loads_SLE = load_SLE[validated_S]
            figure = draw_load(steps_S, loads_SLE, net.top_k, step, self.layers)
            if figure is not None:
                yield "load", figure
            elif len(steps_S) == 1:
                self.tell(trainer, f"the picture of {L * E:,} loads is too large and is not drawn")
        if "symbols" in counts:
            tokenizer = data_of(trainer).tokenizer
            symbols = [tokenizer.symbol(v) for v in range(net.vocab_size)]
            figure = draw_symbols(counts["symbols"], symbols, net.top_k, step, self.layers)
            if figure is not None:
                yield "characters", figure
        if "pairs" in counts:
            yield "coactivation", draw_pairs(counts["pairs"], net.top_k, step, self.layers)

    def tell_once(self, trainer: Trainer, words: str) -> None:
        """Print the first line of several."""
        if not self.told:
            self.tell(trainer, words)
        self.told = True

    @staticmethod
    def tell(trainer: Trainer, words: str) -> None:
        """Print one line on standard error, above the progress bar."""
        if trainer.is_global_zero:
            tqdm.write(words, file=sys.stderr)


def write(path: Path, png: io.BytesIO) -> None:
    """Write a picture atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(png.getbuffer())


def log(trainer: Trainer, name: str, png: io.BytesIO, size: tuple[int, int]) -> None:
    """Log a picture to TensorBoard; `size` is its width and height in pixels."""
    # Pass the PNG bytes unchanged: `add_image` would compress the picture again.
    width, height = size
    image = Summary.Image(
        width=width, height=height, colorspace=4, encoded_image_string=png.getvalue()
    )
    summary = Summary(value=[Summary.Value(tag=f"pictures/{name}", image=image)])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.file_writer.add_summary(summary, trainer.global_step)
