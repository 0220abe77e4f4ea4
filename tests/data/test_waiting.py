"""Which texts are encoded once for all processes, and how long the others wait for the first."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from makemoe.data import token_cache
from makemoe.data.token_cache import token_ids
from makemoe.data.tokenizer import CharTokenizer
from makemoe.errors import DataError

HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "makemoe" / "tokens"


@pytest.mark.parametrize(("more", "is_kept"), [(-1, False), (0, True)])
def test_texts_of_8_mib_and_more_are_kept_in_the_cache(
    tmp_path: Path, cache: Path, more: int, is_kept: bool
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"b" + b"a" * (8 * 2**20 - 1 + more))
    ids = token_ids(str(file), CharTokenizer())
    assert isinstance(ids, np.memmap) == is_kept
    assert len(list(cache.glob("*.npy"))) == is_kept


def test_without_xdg_the_cache_is_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(token_cache, "LARGE_BYTES", 1)
    (tmp_path / "text.txt").write_text("abc")
    token_ids(str(tmp_path / "text.txt"), CharTokenizer())
    assert list((tmp_path / ".cache" / "makemoe" / "tokens").glob("*.npy"))


@pytest.mark.parametrize(("silent_s", "waits"), [(HOUR_S - 60, True), (HOUR_S + 60, False)])
def test_another_process_is_waited_for_until_it_has_written_nothing_for_an_hour(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, silent_s: float, waits: bool
) -> None:
    """It began two hours ago; the clock stands where its last file is `silent_s` old."""
    monkeypatch.setattr(token_cache, "LARGE_BYTES", 1)
    monkeypatch.setattr(token_cache, "PATIENCE_S", 0.01)
    file = tmp_path / "text.txt"
    file.write_text("abc")
    token_ids(str(file), CharTokenizer())
    (kept,), (told,) = cache.glob("*.npy"), cache.glob("*.json")
    told.unlink()
    now = time.time()
    os.utime(kept, (now - silent_s, now - silent_s))
    name = f"{kept.name.partition('-')[0]}.lock"
    other, asked = FileLock(cache / name, is_singleton=False), list[float]()

    class Clock:
        """Time, as a process sees it that has waited from the other's start on."""

        @staticmethod
        def time() -> float:
            asked.append(now)
            if len(asked) == 1:
                return now - 2 * HOUR_S
            if len(asked) == 4:
                other.release()  # the other one has ended
            return now

    monkeypatch.setattr(token_cache, "time", Clock)
    other.acquire()
    try:
        if waits:
            assert token_ids(str(file), CharTokenizer()).tolist() == [0, 1, 2]
        else:
            with pytest.raises(DataError, match=rf"{name} and written nothing for 3600 s"):
                token_ids(str(file), CharTokenizer())
    finally:
        other.release(force=True)
