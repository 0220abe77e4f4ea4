"""A text is known again by its fingerprint."""

import numpy as np
import pytest

from makemoe.data import fingerprint
from makemoe.data.fingerprint import Fingerprint

IDS = np.random.default_rng(0).integers(65, size=50_000)


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i8", ">u4"])
def test_how_ids_are_stored_does_not_matter(dtype: str) -> None:
    assert Fingerprint.of(IDS.astype(dtype), 45_000) == Fingerprint.of(IDS, 45_000)


@pytest.mark.parametrize("at", [0, 4095, 4096, 31_337, 49_999])
def test_one_other_token_is_noticed(at: int) -> None:
    other = IDS.copy()
    other[at] += 1
    assert Fingerprint.of(other, 45_000) != Fingerprint.of(IDS, 45_000)


def test_another_split_is_noticed() -> None:
    assert Fingerprint.of(IDS, 45_001) != Fingerprint.of(IDS, 45_000)


def test_of_a_long_text_a_part_is_read_and_a_shift_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fingerprint, "HASHED_IDS", 10_000)
    before = Fingerprint.of(IDS, 45_000)
    unread = IDS.copy()
    unread[fingerprint.BLOCK_IDS] += 1
    assert Fingerprint.of(unread, 45_000) == before
    assert Fingerprint.of(np.roll(IDS, 1), 45_000) != before
