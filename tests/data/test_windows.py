import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makemoe.data.windows import (
    IGNORE,
    ConsecutiveWindows,
    EvaluationBatches,
    TrainingBatches,
    Windows,
    batch_starts,
)
from makemoe.group import ALONE, Group

SEED, POSITIONS = 1337, 1000


def training(rank: int, world_size: int, batch_size: int, first_step: int = 0) -> TrainingBatches:
    return TrainingBatches(SEED, batch_size, POSITIONS, Group(rank, world_size), lambda: first_step)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    batches = [batch_starts(seed, step, 8, POSITIONS).tolist() for seed, step in [(1, 2)] * 2]
    assert batches[0] == batches[1]
    others = [batch_starts(seed, step, 8, POSITIONS).tolist() for seed, step in [(1, 3), (2, 2)]]
    assert batches[0] not in others
    assert others[0] != others[1]


def test_resuming_goes_on_with_the_same_batches() -> None:
    whole = list(itertools.islice(training(0, 1, 8), 20))
    resumed = list(itertools.islice(training(0, 1, 8, first_step=13), 7))
    assert whole[13:] == resumed
    assert whole == [batch_starts(SEED, step, 8, POSITIONS).tolist() for step in range(20)]


def test_the_first_step_is_asked_for_when_iteration_begins() -> None:
    step = 0
    batches = TrainingBatches(SEED, 8, POSITIONS, ALONE, lambda: step)
    step = 5
    assert next(iter(batches)) == batch_starts(SEED, 5, 8, POSITIONS).tolist()


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9))
def test_ranks_share_the_global_batch(batch_size: int, world_size: int) -> None:
    parts = [next(iter(training(rank, world_size, batch_size))) for rank in range(world_size)]
    assert list(itertools.chain(*parts)) == batch_starts(SEED, 0, batch_size, POSITIONS).tolist()
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    slices = [Group(rank, world_size).slice_of(batch_size) for rank in range(world_size)]
    assert [s.stop - s.start for s in slices] == sizes


def test_starts_are_uniform_over_every_position() -> None:
    starts = np.concatenate([batch_starts(SEED, step, 64, 10) for step in range(500)])
    assert np.bincount(starts) / len(starts) == pytest.approx(np.full(10, 0.1), abs=0.01)


def test_a_window_comes_with_its_next_tokens() -> None:
    ids = np.arange(100, dtype=np.uint16) * 3 % 71
    windows = Windows(ids, 7)
    starts = [0, 50, windows.positions - 1]
    x, y = windows.__getitems__(starts)
    for row, start in enumerate(starts):
        assert x[row].tolist() == ids[start : start + 7].tolist()
        assert y[row].tolist() == ids[start + 1 : start + 8].tolist()
    assert starts[-1] + 8 == len(ids)
    assert str(x.dtype) == str(y.dtype) == "torch.int64"


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(2, 90),
    block_size=st.integers(1, 12),
    batch_size=st.integers(1, 6),
    world_size=st.integers(1, 4),
)
def test_every_next_token_is_predicted_once(
    tokens: int, block_size: int, batch_size: int, world_size: int
) -> None:
    ids = np.arange(1, tokens + 1, dtype=np.uint8)
    windows = ConsecutiveWindows(ids, block_size)
    ranks = [
        list(EvaluationBatches(len(windows), batch_size, Group(rank, world_size)))
        for rank in range(world_size)
    ]
    shapes = [[len(batch) for batch in batches] for batches in ranks]
    assert all(shape == shapes[0] for shape in shapes)
    predicted = []
    for batch in itertools.chain(*ranks):
        assert 1 <= len(batch) <= batch_size
        x, y = windows.__getitems__(batch)
        assert x.shape == y.shape == (len(batch), block_size)
        assert (x[y == IGNORE] == 0).all()
        assert (x[y != IGNORE] == y[y != IGNORE] - 1).all()
        predicted += y[y != IGNORE].tolist()
    assert sorted(predicted) == list(range(2, tokens + 1))


def test_windows_are_consecutive_and_the_short_last_one_counts() -> None:
    windows = ConsecutiveWindows(np.arange(1, 9, dtype=np.uint8), 3)
    assert len(windows) == 3
    x, y = windows.__getitems__([0, 1, 2, 3])
    assert x.tolist() == [[1, 2, 3], [4, 5, 6], [7, 0, 0], [0, 0, 0]]
    assert y.tolist() == [[2, 3, 4], [5, 6, 7], [8, IGNORE, IGNORE], [IGNORE] * 3]


def test_evaluation_batches_know_their_number() -> None:
    batches = EvaluationBatches(10, 4, Group(1, 2))
    assert len(batches) == len(list(batches)) == 2
    assert list(batches) == [[1, 3, 5, 7], [9]]
