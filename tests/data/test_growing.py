import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makemoe.data import growing
from makemoe.data.growing import GrowingArray, is_kept
from makemoe.errors import DataError


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(growing, "SETTLE_BYTES", 10)
    monkeypatch.setattr(growing, "COMMIT_BYTES", 20)
    monkeypatch.setattr(growing, "COPY_BYTES", 7)
    return tmp_path / "ids.npy"


def some(*ids: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    return np.array(ids, np.uint16)


def killed(path: Path, commits: int) -> None:
    """Leave what a process leaves that was killed after so many entries and some more ids."""
    with suppress(KeyboardInterrupt), GrowingArray(path, 2) as array:
        for number in range(commits):
            array.append(0, some(number, 100 + number))
            array.append(1, some(200 + number))
            array.commit({"done": number})
        array.append(0, some(9999))
        array.append(1, some(9999))
        raise KeyboardInterrupt


def test_sections_follow_each_other(path: Path) -> None:
    with GrowingArray(path, 3) as array:
        array.append(2, some(5))
        array.append(0, some(1, 2))
        array.append(1, some(*range(1000)))
        array.append(0, some())
        array.append(0, some(3))
        array.finish()
        assert not path.exists()
        array.publish()
    ids = np.load(path)
    assert ids.tolist() == [1, 2, 3, *range(1000), 5]
    assert ids.dtype == np.uint16
    assert array.lengths == [3, 1000, 1]
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("commits", [1, 3])
def test_writing_goes_on_from_the_last_entry(path: Path, commits: int) -> None:
    killed(path, commits)
    assert not path.exists()
    with GrowingArray(path, 2) as array:
        assert array.state == {"done": commits - 1}
        array.append(0, some(7))
        array.append(1, some(8))
        array.finish()
        array.publish()
    first = [id for number in range(commits) for id in (number, 100 + number)]
    second = [200 + number for number in range(commits)]
    assert np.load(path).tolist() == [*first, 7, *second, 8]
    assert os.listdir(path.parent) == [path.name]


def test_without_an_entry_nothing_stays(path: Path) -> None:
    killed(path, 0)
    assert os.listdir(path.parent) == []


def test_after_a_fault_of_the_data_nothing_stays(path: Path) -> None:
    killed(path, 2)
    with pytest.raises(DataError), GrowingArray(path, 2):
        raise DataError("line 3 is not JSON")
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("written", [True, False])
def test_a_process_killed_at_the_end_has_not_worked_in_vain(path: Path, written: bool) -> None:
    with suppress(KeyboardInterrupt), GrowingArray(path, 2) as array:
        array.append(0, some(*range(30)))
        array.append(1, some(*range(30, 50)))
        array.commit({"done": "all"})
        if written:
            array.finish()
        raise KeyboardInterrupt
    with GrowingArray(path, 2) as array:
        assert array.state == {"done": "all"}
        array.finish()
        array.publish()
    assert np.load(path).tolist() == [*range(50)]


def damage_journal(path: Path) -> None:
    journal = next(path.parent.glob("*.journal.partial"))
    journal.write_bytes(journal.read_bytes().replace(b'"done": 1', b'"done": 2'))


def cut_section(path: Path) -> None:
    os.truncate(next(path.parent.glob("*.0.partial")), 129)


def lose_section(path: Path) -> None:
    next(path.parent.glob("*.1.partial")).unlink()


def forge_journal(path: Path) -> None:
    entry = {"dtype": "<u2", "lengths": [999, 999], "state": {"done": 2}}
    journal = next(path.parent.glob("*.journal.partial"))
    journal.write_text(json.dumps(entry | {"digest": growing._digest(entry)}))


@pytest.mark.parametrize("damage", [damage_journal, cut_section, lose_section, forge_journal])
def test_what_is_damaged_is_begun_anew(path: Path, damage: Callable[[Path], None]) -> None:
    killed(path, 2)
    damage(path)
    with GrowingArray(path, 2) as array:
        assert (array.state, array.lengths) == (None, [0, 0])
        array.append(1, some(4))
        array.finish()
        array.publish()
    assert np.load(path).tolist() == [4]


def test_an_entry_is_due_after_enough_ids(path: Path) -> None:
    with GrowingArray(path, 1) as array:
        array.append(0, some(*range(9)))
        assert not array.is_due
        array.append(0, some(1))
        assert array.is_due
        array.commit({})
        assert not array.is_due


def test_partial_files_with_an_entry_are_kept(path: Path) -> None:
    killed(path, 1)
    assert all(map(is_kept, path.parent.iterdir()))
    other = path.with_name("..ids.journal.partial.0a1b2c3d.partial")
    other.touch()
    assert not is_kept(other)
    path.with_name(".ids.journal.partial").unlink()
    assert not any(map(is_kept, path.parent.iterdir()))


def test_a_full_disk_is_named_and_what_was_kept_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(path, 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def go_on() -> None:
        with GrowingArray(path, 2) as array:
            array.append(0, some(*range(50)))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space") as caught:
            go_on()
    assert caught.value.filename == str(path)
    with GrowingArray(path, 2) as array:
        assert array.state == {"done": 1}
        assert array.lengths == [4, 2]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.integers(0, 65535), max_size=9)), max_size=12
    ).filter(lambda parts: any(ids for _, ids in parts)),
    st.sets(st.integers(0, 12)),
)
def test_the_array_is_the_same_wherever_it_was_interrupted(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, list[int]]], kills: set[int]
) -> None:
    path = tmp_path_factory.mktemp("any") / "ids.npy"
    begin = 0
    for end in [*sorted(kills), len(parts)]:
        try:
            with GrowingArray(path, 2) as array:
                begin = array.state["next"] if array.state else 0
                for number in range(begin, len(parts)):
                    section, ids = parts[number]
                    array.append(section, some(*ids))
                    if number % 2:
                        array.commit({"next": number + 1})
                    if number == end:
                        raise KeyboardInterrupt
                array.finish()
                array.publish()
        except KeyboardInterrupt:
            continue
        break
    sides = [[id for at, ids in parts if at == side for id in ids] for side in (0, 1)]
    assert np.load(path).tolist() == sides[0] + sides[1]
    assert os.listdir(path.parent) == [path.name]
