import mmap
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from makemoe.data import mapped
from makemoe.data.mapped import Mapped
from makemoe.data.windows import ConsecutiveWindows, Windows, batch_starts
from makemoe.machine import Memory

linux_only = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")


def resident_file_mb() -> float:
    """MB of mapped files in the memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) / 1000


@linux_only
def test_windows_of_a_large_file_take_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "MAPPED_WINDOWS", 100)
    expected = np.resize(np.arange(251, dtype=np.uint8), 256_000_000)
    np.save(tmp_path / "ids.npy", expected)
    windows = Windows(np.load(tmp_path / "ids.npy", mmap_mode="r"), 100)
    before, peak = resident_file_mb(), 0.0
    # As many as this read nearly all pages of the file.
    for step in range(150):
        starts = batch_starts(1337, step, 40, windows.positions).tolist()
        x_BT, _ = windows.__getitems__(starts)
        assert x_BT[3].tolist() == expected[starts[3] : starts[3] + 100].tolist()
        peak = max(peak, resident_file_mb() - before)
    assert peak < 150


def random_bytes(path: Path) -> int:
    """How many bytes of a mapped file are said to be read at random."""
    count, is_ours, size = 0, False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) .*", line):
            is_ours = line.endswith(str(path))
            size = int(found[2], 16) - int(found[1], 16)
        elif is_ours and line.startswith("VmFlags:") and " rr" in line:
            count += size
    return count


@linux_only
@pytest.mark.parametrize("memory", [1 << 20, 1 << 30])
def test_what_is_larger_than_memory_is_not_read_ahead_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(mapped, "memory", lambda: Memory(memory, 1 << 60))
    path = tmp_path / "ids.npy"
    np.save(path, np.arange(4 << 20, dtype=np.uint16))
    ids = np.load(path, mmap_mode="r")
    split = 3 << 20
    ConsecutiveWindows(ids[split:], 10)
    assert random_bytes(path) == 0
    windows = Windows(ids[:split], 10)
    expected = 2 * split if memory == 1 << 20 else 0
    assert abs(random_bytes(path) - expected) <= 2 * mmap.PAGESIZE
    assert windows.__getitems__([0, split - 11])[0][1].tolist() == [
        n % 65536 for n in range(split - 11, split - 1)
    ]


def test_ids_in_memory_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "memory", lambda: Memory(1, 1))
    monkeypatch.setattr(mapped, "MAPPED_WINDOWS", 1)
    Mapped(np.arange(100), at_random=True).was_read(5)


@pytest.mark.parametrize("kind", [Windows, ConsecutiveWindows])
@pytest.mark.parametrize(("begin", "end"), [(0, 900_000), (1, 70_003), (700_001, 900_000)])
def test_windows_of_a_mapped_file_are_mapped_again_in_another_process(
    tmp_path: Path, kind: type[Windows | ConsecutiveWindows], begin: int, end: int
) -> None:
    ids = np.arange(900_000) % 65_521
    np.save(tmp_path / "ids.npy", ids.astype(np.uint16))
    windows = kind(np.load(tmp_path / "ids.npy", mmap_mode="r")[begin:end], 10)
    sent = pickle.dumps(windows)
    assert len(sent) < 2_000
    again = pickle.loads(sent)
    assert again.mapped.pages is not None
    for at in (0, 7, 5_000):
        [first] = again.__getitems__([at])[0].tolist()
        start = begin + (at if kind is Windows else 10 * at)
        assert first == ids[start : start + 10].tolist()
    assert np.array_equal(again.ids, ids[begin:end])


@pytest.mark.parametrize("is_gone", [True, False])
def test_windows_of_ids_in_memory_are_sent_as_they_are(tmp_path: Path, is_gone: bool) -> None:
    ids = np.arange(1000, dtype=np.uint16)
    if is_gone:
        np.save(tmp_path / "ids.npy", ids)
        mapped_ids = np.load(tmp_path / "ids.npy", mmap_mode="r")
        (tmp_path / "ids.npy").unlink()
    again = pickle.loads(pickle.dumps(Windows(mapped_ids if is_gone else ids, 10)))
    assert np.array_equal(again.ids, ids)
