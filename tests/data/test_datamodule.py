from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from makemoe.data import token_cache
from makemoe.data.datamodule import NO_STEP, TextDataModule
from makemoe.data.windows import Batch, Windows, batch_starts
from makemoe.errors import DataError, UsageError

TEXT = "Grüße, Bürger! 漢字 und ein Wort.\n" * 30
BATCHES = 3


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "mine.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def module(corpus: str, device: str = "cpu", **settings: Any) -> TextDataModule:
    """A data module in the hands of a trainer that has just begun."""
    data = TextDataModule(corpus, **{"block_size": 8, "batch_size": 4} | settings)
    strategy = SimpleNamespace(root_device=torch.device(device))
    total = SimpleNamespace(processed=0)
    loop = SimpleNamespace(batch_progress=SimpleNamespace(total=total))
    fit_loop = SimpleNamespace(epoch_loop=loop)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        fit_loop=fit_loop,
        strategy=strategy,
        overfit_batches=0.0,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
    )
    return data


def fetched(loader: DataLoader[Batch]) -> list[Batch]:
    return list(islice(loader, BATCHES))


def test_all_batches_are_the_same_from_a_mapped_file_and_from_memory(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"eval_train_split": True, "test_corpus": file}
    held, mapped, workers = (module(file, **settings, num_workers=n) for n in (0, 0, 1))
    assert type(held.ids) is np.ndarray
    monkeypatch.setattr(token_cache, "LARGE_BYTES", 1)
    for data in (mapped, workers):
        assert isinstance(data.ids, np.memmap)
        assert data.vocab_size == held.vocab_size == len(set(TEXT))
        pairs = [
            (held.train_dataloader(), data.train_dataloader()),
            (held.test_dataloader(), data.test_dataloader()),
            *zip(held.val_dataloader(), data.val_dataloader(), strict=True),
        ]
        for one, other in pairs:
            for batch, same in zip(fetched(one), fetched(other), strict=True):
                assert all(torch.equal(a, b) for a, b in zip(batch, same, strict=True))


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), ("mps", False)])
def test_batches_for_a_cuda_device_are_in_pinned_memory(
    file: str, device: str, pinned: bool
) -> None:
    data = module(file, device)
    loaders = [data.train_dataloader(), *data.val_dataloader(), data.test_dataloader()]
    assert [loader.pin_memory for loader in loaders] == [pinned] * 3


def test_the_last_tenth_is_for_validation(file: str) -> None:
    data = module(file)
    assert data.split == len(TEXT) * 9 // 10
    (loader,) = data.val_dataloader()
    x, _ = next(iter(loader))
    text = data.tokenizer.decode(x[0].numpy())
    assert text == TEXT[data.split : data.split + 8]


def test_a_test_text_is_read_with_the_vocabulary_of_the_corpus(file: str, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Gruz")
    with pytest.raises(DataError, match=r"^--data.test_corpus '.*other.txt': character 'z'"):
        module(file, test_corpus=str(other)).test_dataloader()


@pytest.mark.parametrize("large", [1, 1 << 20])
def test_a_text_shorter_than_a_window_is_refused(
    file: str, monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    monkeypatch.setattr(token_cache, "LARGE_BYTES", large)
    with pytest.raises(DataError, match=f"has {len(TEXT)} tokens, and block_size 2000 needs"):
        _ = module(file, block_size=2000).ids


@pytest.mark.parametrize("name", ["block_size", "batch_size", "eval_batch_size"])
def test_sizes_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} 0"):
        TextDataModule("sample", **{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_that_cannot_be_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=f"seed {seed}: use 0 to"):
        TextDataModule("sample", seed=seed)


def test_sampled_windows_are_the_same_every_time_and_of_the_training_split_alone() -> None:
    data = module("sample", eval_batch_size=7)
    batches = list(data.sampled_windows(500))
    assert [len(x_BT) for x_BT in batches] == [7] * 9  # 63 windows of 8
    assert all(map(torch.equal, batches, data.sampled_windows(500)))
    starts = np.lib.stride_tricks.sliding_window_view(data.ids[: data.split], 8)
    known = {window.tobytes() for window in starts.astype(np.int64)}
    assert all(window.numpy().tobytes() in known for x_BT in batches for window in x_BT)
    assert len({window.numpy().tobytes() for x_BT in batches for window in x_BT}) > 50


def test_sampled_windows_are_those_of_one_draw() -> None:
    data = module("sample", eval_batch_size=7)
    windows = Windows(data.ids[: data.split], 8)
    starts = batch_starts(data.seed, NO_STEP, 63, windows.positions)
    expected, _ = windows.__getitems__(starts.tolist())
    assert torch.equal(torch.cat(list(data.sampled_windows(500))), expected)


def test_sampled_windows_without_end_are_drawn_as_they_are_needed() -> None:
    assert next(module("sample").sampled_windows(10**15)).shape == (64, 8)


@pytest.mark.parametrize("size", [True, 2.0, "3", None, 1 << 63])
def test_sizes_that_are_no_counts_are_refused(size: Any) -> None:
    with pytest.raises(UsageError, match=r"^eval_batch_size .*: use "):
        TextDataModule("sample", eval_batch_size=size)
