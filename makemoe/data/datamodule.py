"""A corpus as batches for Lightning: split, tokens, windows."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from makemoe.data.tokenizer import CharTokenizer, Ids, Tokenizer
from makemoe.data.unknown import KnownText, Unknown, known_text
from makemoe.data.windows import (
    Batch,
    ConsecutiveWindows,
    EvaluatedText,
    EvaluationBatches,
    TrainingBatches,
    Windows,
    as_fetched,
    generator_of,
    validation_begins,
)
from makemoe.errors import DataError, UsageError
from makemoe.sizes import check_sizes, in_digits

NO_STEP = 2**64 - 1
"""Stands for a step in drawing windows that are of none."""


class TextDataModule(LightningDataModule):
    """The first nine tenths of a text to train on, the last tenth to validate on.

    Batch k of a run is a pure function of (seed, k), and each process takes its slice of it, so
    nothing about the data is stored to resume exactly. Evaluation predicts every next token of its
    text once, in consecutive windows.

    Args:
        corpus: `sample` (bundled), `tinyshakespeare` (fetched once), or the path of a UTF-8 file.
        block_size: window length, in tokens.
        batch_size: windows a step, over all processes together.
        eval_batch_size: windows a step in evaluation, per process; a matter of speed alone.
        eval_train_split: at each validation, also the loss on the beginning of the training split,
            as long as the validation split.
        test_corpus: a text for `makemoe test`; null: the validation split.
        tokenizer: how text becomes tokens; null: one token a character.
        seed: decides which windows make a batch.
        num_workers: processes that load batches; 0: the training process itself.
        unknown: what is done about a character that a checkpoint's tokenizer does not know: `error`
            refuses the text, `skip` leaves the character out. A checkpoint does not carry it along.

    Raises:
        DataError: for a text that cannot be read or is too short.
        UsageError: for sizes that cannot be.
    """

    def __init__(
        self,
        corpus: str = "sample",
        block_size: int = 128,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        eval_train_split: bool = False,
        test_corpus: str | None = None,
        tokenizer: Tokenizer | None = None,
        seed: int = 1337,
        num_workers: int = 0,
        unknown: Unknown = "error",
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        check_sizes({"block_size": block_size, **sizes})
        if num_workers < 0:
            raise UsageError(
                f"num_workers {num_workers} is negative: 0 loads in the process itself"
            )
        self.save_hyperparameters(ignore="unknown", logger=False)
        self.corpus, self.test_corpus = corpus, test_corpus
        self.block_size, self.batch_size = block_size, batch_size
        self.eval_batch_size, self.eval_train_split = eval_batch_size, eval_train_split
        self.tokenizer = tokenizer or CharTokenizer()
        self.seed, self.num_workers, self.unknown = seed, num_workers, unknown

    @cached_property
    def text(self) -> KnownText:
        """The corpus as tokens; those of a large one lie in a file, and are read as needed."""
        text = known_text(self.corpus, self.tokenizer, "--data.corpus", self.unknown)
        ids = text.ids
        shortest = max(11, -(-10 * (self.block_size + 1) // 9))
        if len(ids) < shortest:
            raise DataError(
                f"--data.corpus {self.corpus!r} has {len(ids)} tokens, and block_size "
                f"{self.block_size} needs {shortest} or more: lower --model.block_size or pass a "
                "longer text"
            )
        return text

    @property
    def ids(self) -> Ids:
        """The tokens of the corpus, shape (tokens,)."""
        return self.text.ids

    @cached_property
    def test_text(self) -> EvaluatedText:
        """`test_corpus`, or the validation split."""
        if self.test_corpus is None:
            return self.text.validation_split()
        _ = self.vocab_size
        option = "--data.test_corpus"
        text = known_text(self.test_corpus, self.tokenizer, option, self.unknown).whole()
        if len(text.ids) < 2:
            raise DataError(
                f"{option} {self.test_corpus!r} has one token, and none to predict: pass a longer "
                "text"
            )
        return text

    @property
    def split(self) -> int:
        """Where training ends and validation begins, in tokens."""
        return validation_begins(len(self.ids))

    @property
    def vocab_size(self) -> int:
        """Number of distinct tokens."""
        if not self.tokenizer.is_fitted:
            _ = self.ids
        return self.tokenizer.vocab_size

    @property
    def validated_texts(self) -> dict[str, EvaluatedText]:
        """What `validate` measures, by the names of the losses."""
        texts = {"val_loss": self.text.validation_split()}
        if self.eval_train_split:
            length = min(self.split, len(self.ids) - self.split)
            name = "as much of the training split"
            texts["train_split_loss"] = EvaluatedText(name, self.ids[:length])
        return texts

    @property
    def tested_texts(self) -> dict[str, EvaluatedText]:
        """What `test` measures, by the name of the loss."""
        return {"test_loss": self.test_text}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches without end, from the step the trainer stands at."""
        trainer = self.trainer
        assert trainer is not None
        check_shares(self.batch_size, trainer.world_size)
        windows = Windows(self.ids[: self.split], self.block_size)
        batches = TrainingBatches(
            self.seed,
            self.batch_size,
            windows.positions,
            trainer.global_rank,
            trainer.world_size,
            first_step=lambda: batches_done(trainer),
        )
        return self._loader(windows, batches)

    def sampled_windows(self, tokens: int) -> Iterator[Tensor]:
        """Inputs (B, T) of so many tokens of the training split, the same every time.

        Windows begin anywhere, as in training; there is one batch of them after another.
        """
        windows = Windows(self.ids[: self.split], self.block_size)
        count = -(-tokens // self.block_size)
        random = generator_of(self.seed, NO_STEP)
        for begin in range(0, count, self.eval_batch_size):
            # As they are needed: drawn in parts, the numbers are those of one large draw.
            size = min(self.eval_batch_size, count - begin)
            yield windows.__getitems__(random.integers(windows.positions, size=size).tolist())[0]

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """The validation split; and, if asked for, a stretch of the training split as long."""
        return [self._evaluation_loader(text.ids) for text in self.validated_texts.values()]

    def test_dataloader(self) -> DataLoader[Batch]:
        """`test_corpus` whole, or the validation split."""
        return self._evaluation_loader(self.test_text.ids)

    def _evaluation_loader(self, ids: Ids) -> DataLoader[Batch]:
        assert self.trainer is not None
        windows = ConsecutiveWindows(ids, self.block_size)
        batches = EvaluationBatches(
            len(windows), self.eval_batch_size, self.trainer.global_rank, self.trainer.world_size
        )
        return self._loader(windows, batches)

    def _loader(
        self, windows: Windows | ConsecutiveWindows, batches: TrainingBatches | EvaluationBatches
    ) -> DataLoader[Batch]:
        return DataLoader(
            windows,
            batch_sampler=batches,
            collate_fn=as_fetched,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # Of its own: from the default one it would draw, and so shift dropout and noise.
            generator=torch.Generator().manual_seed(self.seed),
        )


def check_shares(batch_size: int, processes: int) -> None:
    """Raise UsageError for a batch that has no window for each process."""
    if batch_size < processes:
        raise UsageError(
            f"batch_size {in_digits(batch_size)} is shared by {in_digits(processes)} processes and "
            "leaves some without a window: raise --data.batch_size or lower --trainer.devices"
        )


def batches_done(trainer: Trainer) -> int:
    """How many batches a run has trained on, over all its parts: the number of the next one."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)


def data_of(trainer: Trainer) -> TextDataModule:
    """The data a trainer trains on."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, TextDataModule)
    return data
