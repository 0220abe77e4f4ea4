"""Cuts token sequences into batches: at random for training, consecutively for evaluation."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from makemoe.data.mapped import Mapped, Place
from makemoe.data.tokenizer import Ids
from makemoe.group import ALONE, Group

IGNORE = -100
"""Target of a padded position, which the loss ignores (`ignore_index` of cross-entropy)."""

Batch = tuple[Tensor, Tensor]
"""Inputs and their next tokens, int64, (B, T) each."""


class EvaluatedText(NamedTuple):
    """A text to compute the loss of: its name and its tokens."""

    name: str
    ids: Ids


def batch_starts(seed: int, step: int, batch_size: int, positions: int) -> NDArray[np.int64]:
    """Start positions of the windows of batch `step`, shape (batch_size,); a pure function.

    Philox is a counter-based generator without state between steps, so a run that is resumed or
    split over a different number of processes draws the same batches.
    """
    return generator_of(seed, step).integers(positions, size=batch_size)


def generator_of(seed: int, step: int) -> np.random.Generator:
    """A random generator whose numbers are a pure function of seed and step."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))


def validation_begins(tokens: int) -> int:
    """Index of the first token of the validation split, the last tenth of a text."""
    return tokens * 9 // 10


class TrainingBatches(Sampler[list[int]]):
    """Yields the start positions of this process's windows in each global batch, without end.

    Args:
        seed: seed of the run.
        batch_size: windows in a global batch.
        positions: number of possible start positions.
        group: the processes that share a batch.
        first_step: called when iteration starts; returns the index of the first batch.
        cycle: number of batches after which the first one comes again; 0: they are all different.
    """

    def __init__(
        self,
        seed: int,
        batch_size: int,
        positions: int,
        group: Group,
        first_step: Callable[[], int],
        cycle: int = 0,
    ) -> None:
        self.seed, self.batch_size, self.positions = seed, batch_size, positions
        self.part = group.slice_of(batch_size)
        self.first_step, self.cycle = first_step, cycle

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step()
        while True:
            index = step % self.cycle if self.cycle else step
            starts = batch_starts(self.seed, index, self.batch_size, self.positions)
            yield starts[self.part].tolist()
            step += 1


class FromIds(Dataset[Batch]):
    """Windows of ids, which a process that loads batches maps itself if they are in a file.

    Args:
        ids: the sequence, any integer dtype.
        block_size: window length T.
    """

    at_random: ClassVar[bool]

    def __init__(self, ids: Ids, block_size: int) -> None:
        self.ids, self.block_size = ids, block_size
        self.mapped = Mapped(ids, self.at_random)

    def __reduce__(self) -> tuple[Any, ...]:
        return mapped_again, (type(self), Place.of(self.ids), self.block_size)


def mapped_again(kind: type["FromIds"], ids: Place | Ids, block_size: int) -> "FromIds":
    """The windows that `FromIds.__reduce__` tells of."""
    return kind(ids.mapped() if isinstance(ids, Place) else ids, block_size)


class Windows(FromIds):
    """All windows of a sequence, indexed by start position and fetched in batches.

    Args:
        ids: the sequence, any integer dtype.
        block_size: window length T.
    """

    at_random = True

    def __init__(self, ids: Ids, block_size: int) -> None:
        super().__init__(ids, block_size)
        self.positions = len(ids) - block_size

    def __getitems__(self, starts: list[int]) -> Batch:
        span = np.arange(self.block_size + 1)
        windows = self.ids[np.array(starts)[:, None] + span].astype(np.int64)
        self.mapped.was_read(len(starts))
        both = torch.from_numpy(windows)
        return both[:, :-1], both[:, 1:]


class ConsecutiveWindows(FromIds):
    """A sequence cut into consecutive windows, so that each next token is predicted exactly once.

    n tokens give n - 1 predictions. The last window may be short; it and windows past the end
    (which give all processes equally many) are padded with id 0 and target IGNORE.

    Args:
        ids: the sequence, at least two tokens.
        block_size: window length T.
    """

    at_random = False

    def __init__(self, ids: Ids, block_size: int) -> None:
        super().__init__(ids, block_size)
        self.predictions = len(ids) - 1

    def __len__(self) -> int:
        return -(-self.predictions // self.block_size)

    def __getitems__(self, windows: list[int]) -> Batch:
        at_BT = np.array(windows)[:, None] * self.block_size + np.arange(self.block_size)
        inside_BT = at_BT < self.predictions
        at_BT = np.where(inside_BT, at_BT, 0)
        x_BT = np.where(inside_BT, self.ids[at_BT], 0).astype(np.int64)
        y_BT = np.where(inside_BT, self.ids[at_BT + 1].astype(np.int64), IGNORE)
        self.mapped.was_read(len(windows))
        return torch.from_numpy(x_BT), torch.from_numpy(y_BT)


class EvaluationBatches(Sampler[list[int]]):
    """Each window once, assigned to the processes in turn; all get the same number of batches."""

    def __init__(self, windows: int, batch_size: int, group: Group = ALONE) -> None:
        share = -(-windows // group.size)
        mine = range(group.rank, share * group.size, group.size)
        self.batches = [mine[i : i + batch_size] for i in range(0, share, batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class FirstBatches(Sampler[list[int]]):
    """Only the first batches of another sampler."""

    def __init__(self, batches: Sampler[list[int]], count: int) -> None:
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.batches, self.count)

    def __len__(self) -> int:
        return self.count


def as_fetched(batch: Any) -> Any:
    """Return the batch unchanged: the datasets above return whole batches."""
    return batch
