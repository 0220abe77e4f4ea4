"""The LightningDataModule: splits a corpus and serves it as batches of windows."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from makemoe.data.fingerprint import Fingerprint
from makemoe.data.split import SEED_END
from makemoe.data.tokenizer import CharTokenizer, Ids, Tokenizer
from makemoe.data.unknown import KnownText, Unknown, known_text
from makemoe.data.windows import (
    Batch,
    ConsecutiveWindows,
    EvaluatedText,
    EvaluationBatches,
    FirstBatches,
    TrainingBatches,
    Windows,
    as_fetched,
    generator_of,
)
from makemoe.data.workers import end_quietly
from makemoe.errors import DataError, UsageError
from makemoe.group import ALONE, Group
from makemoe.sizes import check_sizes, in_digits

NO_STEP = 2**64 - 1
"""Step number for windows that belong to no training step."""


class TextDataModule(LightningDataModule):
    """Trains on nine tenths of a corpus and validates on the rest.

    One text is cut: its last tenth is the validation split. Of several documents, about a tenth is
    held out: `makemoe.data.split` says which.

    Batch k of a run is a pure function of (seed, k), and each process takes its slice of it, so an
    exact resume needs no stored data state. Evaluation predicts every next token of its text once,
    in consecutive windows.

    Args:
        corpus: a file, folder or pattern (.txt, .jsonl, also .gz or .zst), `sample`, or
            `tinyshakespeare` (downloaded once).
        block_size: window length, in tokens.
        batch_size: windows per step, over all processes.
        eval_batch_size: windows per evaluation step and process; affects speed only.
        eval_train_split: at each validation, also compute the loss on the start of the training
            split, as long as the validation split.
        test_corpus: text for `makemoe test`; null: the validation split.
        text_key: key of the text in each line of a .jsonl file.
        split_seed: decides which of several documents are for validation.
        tokenizer: turns text into tokens; null: one per character.
        seed: determines the windows of each batch.
        num_workers: processes that load batches; 0: load in the training process.
        unknown: `error` refuses characters that a checkpoint's tokenizer does not know, `skip`
            omits them. Not stored in checkpoints.

    Raises:
        DataError: for a text that cannot be read or is too short.
        UsageError: for invalid sizes.
    """

    def __init__(
        self,
        corpus: str = "sample",
        block_size: int = 128,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        eval_train_split: bool = False,
        test_corpus: str | None = None,
        text_key: str = "text",
        split_seed: int = 0,
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
                f"num_workers {num_workers} is negative: use 0 to load in the training process"
            )
        if not 0 <= seed < 2 * SEED_END:
            raise UsageError(f"seed {in_digits(seed)}: use 0 to 2**63 - 1")
        if not 0 <= split_seed < SEED_END:
            raise UsageError(f"split_seed {in_digits(split_seed)}: use 0 to 2**62 - 1")
        # The fitted tokenizer is stored with the model, as `LanguageModel.on_save_checkpoint` says.
        self.save_hyperparameters(ignore=["unknown", "tokenizer"], logger=False)
        self.corpus, self.test_corpus = corpus, test_corpus
        self.block_size, self.batch_size = block_size, batch_size
        self.eval_batch_size, self.eval_train_split = eval_batch_size, eval_train_split
        self.tokenizer = tokenizer or CharTokenizer()
        self.seed, self.num_workers, self.unknown = seed, num_workers, unknown
        self.text_key, self.split_seed = text_key, split_seed
        self.group: Group = ALONE

    def setup(self, stage: str) -> None:
        """Join the group of processes that the trainer has started."""
        self.group = Group.joined()

    @cached_property
    def text(self) -> KnownText:
        """The corpus as tokens; those of a large corpus are in a file and read when needed."""
        option = f"--data.corpus {self.corpus!r}"
        text = known_text(
            self.corpus,
            self.tokenizer,
            "--data.corpus",
            self.unknown,
            self.text_key,
            self.split_seed,
        )
        is_cut = text.tokens.split is None
        tokens = len(text.ids) if is_cut else text.split
        shortest = max(11, -(-10 * (self.block_size + 1) // 9)) if is_cut else self.block_size + 1
        if tokens < shortest:
            where = "" if is_cut else " in its training split"
            raise DataError(
                f"{option} has {tokens} tokens{where}, and block_size {self.block_size} needs "
                f"{shortest} or more: lower --model.block_size or pass a longer text"
            )
        if len(text.ids) - text.split < 2:
            raise DataError(
                f"{option} has one token in its validation split, so there is none to predict: "
                "pass longer documents"
            )
        return text

    @property
    def ids(self) -> Ids:
        """The tokens of the corpus, shape (tokens,)."""
        return self.text.ids

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """By which the corpus is known again when a run is resumed."""
        return Fingerprint.of(self.ids, self.split)

    @cached_property
    def test_text(self) -> EvaluatedText:
        """`test_corpus`, or the validation split."""
        if self.test_corpus is None:
            return self.text.validation_split()
        _ = self.vocab_size
        option = "--data.test_corpus"
        text = known_text(
            self.test_corpus, self.tokenizer, option, self.unknown, self.text_key
        ).whole()
        if len(text.ids) < 2:
            raise DataError(
                f"{option} {self.test_corpus!r} has one token, so there is none to predict: pass a "
                "longer text"
            )
        return text

    @property
    def split(self) -> int:
        """Index of the first token of the validation split."""
        return self.text.split

    @property
    def vocab_size(self) -> int:
        """Number of distinct tokens."""
        if not self.tokenizer.is_fitted:
            _ = self.ids
        return self.tokenizer.vocab_size

    @property
    def validated_texts(self) -> dict[str, EvaluatedText]:
        """The texts that `validate` evaluates, by the names of the losses."""
        texts = {"val_loss": self.text.validation_split()}
        if self.eval_train_split:
            length = min(self.split, len(self.ids) - self.split)
            name = "as much of the training split"
            texts["train_split_loss"] = EvaluatedText(name, self.ids[:length])
        return texts

    @cached_property
    def validated_bytes(self) -> int:
        """Number of UTF-8 bytes of the tokens that a validation predicts."""
        return self.tokenizer.utf8_bytes(self.validated_texts["val_loss"].ids[1:])

    @property
    def tested_texts(self) -> dict[str, EvaluatedText]:
        """The text that `test` evaluates, by the name of the loss."""
        return {"test_loss": self.test_text}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless batches, starting at the trainer's current step."""
        trainer = self.trainer
        assert trainer is not None
        check_shares(self.batch_size, self.group.size)
        windows = Windows(self.ids[: self.split], self.block_size)
        return self._loader(windows, self._batches(windows, lambda: batches_done(trainer)))

    def _batches(self, windows: Windows, first_step: Callable[[], int]) -> TrainingBatches:
        assert self.trainer is not None
        return TrainingBatches(
            self.seed,
            self.batch_size,
            windows.positions,
            self.group,
            first_step,
            cycle=overfit_batches(self.trainer),
        )

    def sampled_windows(self, tokens: int) -> Iterator[Tensor]:
        """Inputs (B, T) with at least `tokens` tokens of the training split, always the same ones.

        Windows start at random positions, as in training, and come in batches.
        """
        windows = Windows(self.ids[: self.split], self.block_size)
        count = -(-tokens // self.block_size)
        random = generator_of(self.seed, NO_STEP)
        for begin in range(0, count, self.eval_batch_size):
            # Drawn when needed: several small draws give the same numbers as one large draw.
            size = min(self.eval_batch_size, count - begin)
            yield windows.__getitems__(random.integers(windows.positions, size=size).tolist())[0]

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """The validation split and, if requested, an equally long part of the training split.

        With `overfit_batches` N, the N batches that are trained on.
        """
        assert self.trainer is not None
        if self.trainer.state.fn == TrainerFn.FITTING and (count := overfit_batches(self.trainer)):
            windows = Windows(self.ids[: self.split], self.block_size)
            return [self._loader(windows, FirstBatches(self._batches(windows, lambda: 0), count))]
        return [self._evaluation_loader(text.ids) for text in self.validated_texts.values()]

    def test_dataloader(self) -> DataLoader[Batch]:
        """All of `test_corpus`, or the validation split."""
        return self._evaluation_loader(self.test_text.ids)

    def _evaluation_loader(self, ids: Ids) -> DataLoader[Batch]:
        windows = ConsecutiveWindows(ids, self.block_size)
        batches = EvaluationBatches(len(windows), self.eval_batch_size, self.group)
        return self._loader(windows, batches)

    def _loader(
        self, windows: Windows | ConsecutiveWindows, batches: Sampler[list[int]]
    ) -> DataLoader[Batch]:
        return DataLoader(
            windows,
            batch_sampler=batches,
            collate_fn=as_fetched,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=end_quietly,
            # From pinned memory, the copy to a CUDA device does not wait.
            pin_memory=self.trainer is not None and is_on_cuda(self.trainer),
            # Its own generator: drawing from the default one would change dropout and noise.
            generator=torch.Generator().manual_seed(self.seed),
        )


def is_on_cuda(trainer: Trainer) -> bool:
    """Whether the trainer's device is a CUDA device."""
    return trainer.strategy.root_device.type == "cuda"


def check_shares(batch_size: int, processes: int) -> None:
    """Raise UsageError for a batch with fewer windows than processes."""
    if batch_size < processes:
        raise UsageError(
            f"batch_size {in_digits(batch_size)} is too small for {in_digits(processes)} "
            "processes: raise --data.batch_size or lower --trainer.devices"
        )


def overfit_batches(trainer: Any) -> int:
    """Number of batches to train and validate on; 0: all."""
    return int(trainer.overfit_batches)


def batches_done(trainer: Trainer) -> int:
    """Number of batches trained on, including before a resume; also the index of the next one."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)


def text_data(trainer: Any) -> TextDataModule | None:
    """The trainer's TextDataModule; None if it has other data."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, TextDataModule) else None


def data_of(trainer: Trainer) -> TextDataModule:
    """The trainer's TextDataModule, which it is known to have."""
    data = text_data(trainer)
    assert data is not None
    return data
