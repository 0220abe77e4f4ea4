"""The board in a store that outlives the processes: each of their starts has its own values."""

from collections.abc import Callable

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from makemoe.cli.board import Board

New = Callable[[str], Board]


@pytest.fixture
def store() -> TCPStore:
    """That of torchrun."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def new(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> New:
    """Makes the board of a process of torchrun, by its number."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    return lambda rank: Board("board", rank)


def test_what_one_process_writes_the_others_read(new: New) -> None:
    first, other = new("0"), new("1")
    first.set("key", [1, None])
    assert other.get("key") == [1, None]
    assert (first.start, other.start) == (1, 1)


def test_processes_that_start_again_find_nothing_of_the_last_start(new: New) -> None:
    for rank in "012":
        new(rank).set("key", 1)
    # In any order; one does not start again.
    again = [new(rank) for rank in "20"]
    assert [board.has("key") for board in again] == [False, False]
    assert [board.start for board in again] == [2, 2]


def test_a_process_that_starts_twice_while_another_starts_once_does_not_meet_it(new: New) -> None:
    for rank in "010":
        new(rank).set("key", rank)
    twice, once = new("0"), new("1")
    assert not twice.has("key")
    assert not once.has("key")
    assert (twice.start, once.start) == (3, 3)


def test_a_late_process_learns_why_its_start_has_failed(new: New) -> None:
    new("0").claim("verdict", "failed")
    assert new("1").get("verdict") == "failed"


def test_a_process_that_connects_again_stays_in_its_start(new: New) -> None:
    first, other = new("0"), new("1")
    first.set("key", 1)
    assert other.has("key")
    other.close()
    assert other.has("key")


def test_of_two_that_claim_a_key_the_first_one_has_it(new: New) -> None:
    first, other = new("0"), new("1")
    assert first.claim("key", "mine")
    assert not other.claim("key", "mine too")
    assert other.get("key") == "mine"
