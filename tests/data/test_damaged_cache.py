"""Token ids that are damaged, foreign or cannot be kept, and processes that are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from large_text import TEXT, Counting, expected, in_pieces, kept, work, written

from makemoe.data import token_cache
from makemoe.data.token_cache import token_ids
from makemoe.data.tokenizer import CharTokenizer
from makemoe.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return in_pieces(tmp_path, monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_a_damaged_entry_is_made_anew(file: Path, cache: Path, suffix: str, damage: bytes) -> None:
    work(file, Counting())
    (path,) = cache.glob(f"*{suffix}")
    path.write_bytes(damage)
    assert work(file, Counting())[-1] == "encode"
    assert work(file, Counting()) == []


class Touching:
    """Pickles as a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def foreign_arrays(path: Path) -> dict[str, Any]:
    length = len(TEXT)
    return {
        "of objects": np.array([Touching(path)], dtype=object),
        "of shares": np.zeros(length),
        "of two dimensions": np.zeros((length, 2), np.uint8),
        "of negative numbers": np.full(length, -1, np.int32),
        "of ids out of range": np.full(length, 200, np.uint8),
        "with one id out of range": np.arange(length, dtype=np.uint8) % 255,
        "of nothing": np.zeros(0, np.uint8),
    }


@pytest.mark.parametrize("kind", foreign_arrays(Path()))
def test_a_foreign_array_is_made_anew(file: Path, cache: Path, tmp_path: Path, kind: str) -> None:
    work(file, Counting())
    (path,) = cache.glob("*.npy")
    np.save(path, foreign_arrays(tmp_path / "ran")[kind], allow_pickle=True)
    assert work(file, Counting()) == ["encode"]
    assert not (tmp_path / "ran").exists()
    assert work(file, Counting()) == []


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "null",
        "{}",
        '{"vocabulary": "ab"}',
        '{"init_args": {"vocabulary": "ab"}, "digest": "0"}',
        '{"init_args": {"vocabulary": [1, 2]}, "digest": "DIGEST"}',
        '{"init_args": {"vocabulary": "aa"}, "digest": "DIGEST"}',
        '{"init_args": {"other": "ab"}, "digest": "DIGEST"}',
        "[" * 100_000,
    ],
    ids=lambda content: content[:60],
)
def test_what_was_not_learned_is_learned_anew(file: Path, cache: Path, content: str) -> None:
    work(file, Counting())
    (path,) = cache.glob("*.json")
    if "DIGEST" in content:
        init_args = json.loads(content)["init_args"]
        content = content.replace("DIGEST", token_cache._digest(init_args))
    path.write_text(content)
    assert work(file, Counting())[0] == "fit"
    assert work(file, Counting()) == []


@pytest.mark.parametrize("suffix", [".json", ".npy"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_told_of_and_left_alone(
    file: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    suffix: str,
) -> None:
    token_ids(str(file), CharTokenizer())
    (path,) = cache.glob(f"*{suffix}")
    path.unlink()
    make(path)
    assert token_ids(str(file), CharTokenizer()).tolist() == expected(TEXT)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert "stay in memory" in line


def test_an_entry_cut_short_is_made_anew(file: Path, cache: Path) -> None:
    work(file, Counting())
    (path,) = cache.glob("*.npy")
    os.truncate(path, path.stat().st_size - 1)
    assert work(file, Counting()) == ["encode"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("aé".encode() * 50 + b"\xff", "not UTF-8: byte 0xff at offset 150;"),
        (b"\xef\xbb\xbf", "the file is empty;"),
        (b"a" * 1000, "contains only 'a';"),
    ],
)
def test_what_is_wrong_with_a_large_text_is_told_once_and_nothing_stays(
    file: Path, cache: Path, content: bytes, problem: str
) -> None:
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        token_ids(str(file), CharTokenizer(), "--data.test_corpus")
    assert str(caught.value).startswith(f"--data.test_corpus {str(file)!r}: {problem}")
    assert kept(cache) == []


def test_an_unknown_character_is_placed_in_the_file(file: Path, cache: Path) -> None:
    file.write_bytes(TEXT.encode() + b"z")
    told = rf"^--data.corpus '[^']*': character 'z' .* offset {len(TEXT)} "
    with pytest.raises(DataError, match=told):
        token_ids(str(file), CharTokenizer("".join(set(TEXT))))
    assert kept(cache) == []


def in_the_way(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.mkdir(parents=True)
    cache.touch()


def full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def homeless(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser())
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


@pytest.mark.parametrize("trouble", [in_the_way, full, homeless])
def test_ids_that_cannot_be_written_stay_in_memory(
    file: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    trouble(cache, monkeypatch)
    ids = token_ids(str(file), CharTokenizer())
    assert not isinstance(ids, np.memmap)
    assert ids.tolist() == expected(TEXT)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith(f"makemoe: the tokens of {str(file)!r} stay in memory: cannot store")
    assert kept(cache) == []


def test_a_read_only_cache_is_used_for_what_it_holds(
    file: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work(file, Counting())

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(cache))

    monkeypatch.setattr(token_cache, "FileLock", refuse)  # root may write anywhere
    assert work(file, Counting()) == []
    assert capsys.readouterr() == ("", "")
    ids = token_ids(str(file), CharTokenizer())
    assert not isinstance(ids, np.memmap)
    assert f"cannot store them in {cache}: Permission denied" in capsys.readouterr().err


CHILD = """
import sys
from pathlib import Path
from makemoe.data import token_cache
from makemoe.data.tokenizer import CharTokenizer
assert "torch" not in sys.modules
token_cache.LARGE_BYTES = 1
go, log = Path(sys.argv[2]), Path(sys.argv[3])

class Waiting(CharTokenizer):
    def encode_chunks(self, chunks):
        with log.open("a") as file:
            file.write("encode\\n")
        for ids in super().encode_chunks(chunks):
            yield ids
            while not go.exists():
                pass

print("ready", flush=True)
print(token_cache.token_ids(sys.argv[1], Waiting()).sum())
"""


def child(file: Path, go: Path, log: Path) -> subprocess.Popen[str]:
    """A process that makes the ids of a file, and is in the midst of it until there is `go`."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, str(file), str(go), str(log)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} has not appeared"
        time.sleep(0.01)


def test_a_killed_process_leaves_nothing_that_is_taken_for_ids(
    file: Path, cache: Path, tmp_path: Path
) -> None:
    process = child(file, tmp_path / "never", tmp_path / "log")
    wait_for(tmp_path / "log")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert kept(cache) == [".json", ".partial"]
    assert work(file, Counting()) == ["fit", "encode"]
    assert ".partial" not in kept(cache)


def test_processes_that_start_at_once_encode_once(file: Path, cache: Path, tmp_path: Path) -> None:
    go, log = tmp_path / "go", tmp_path / "log"
    children = [child(file, go, log) for _ in range(3)]
    for process in children:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    wait_for(log)
    time.sleep(0.2)  # the others are at the lock, or at work if there were none
    go.touch()
    for process in children:
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, f"{sum(expected(TEXT))}\n", "")
    assert log.read_text() == "encode\n"
    assert kept(cache) == [".json", ".npy"]
