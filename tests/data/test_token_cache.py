import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_pairs import BytePairs

from makemoe.data import bpe, corpus, growing, reading, token_cache
from makemoe.data.bpe import BPETokenizer
from makemoe.data.token_cache import token_ids
from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer, Ids
from makemoe.errors import DataError

TEXT = "Grüße, Bürger! 漢字 und \U0001f600.\r\n" * 40
ROOT = Path(__file__).parents[2]


class Counting(CharTokenizer):
    """It counts how often it is asked to work."""

    work: list[str]

    def __init__(self, vocabulary: str | None = None) -> None:
        super().__init__(vocabulary)
        self.work = []

    def fit_chunks(self, chunks: Iterable[str]) -> "Counting":
        self.work.append("fit")
        super().fit_chunks(chunks)
        return self

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        self.work.append("encode")
        return super().encode_chunks(chunks)

    def restore(self, init_args: dict[str, Any]) -> None:
        work = self.work
        super().restore(init_args)
        self.work = work


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ids go; every text is a large one, and is read in pieces."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "LARGE_BYTES", 1)
    monkeypatch.setattr(growing, "SETTLE_BYTES", 100)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 61)
    return tmp_path / "cache/makemoe/tokens"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_bytes(TEXT.encode())
    return path


def expected(text: str) -> list[int]:
    id_of = {character: i for i, character in enumerate(sorted(set(text)))}
    return [id_of[character] for character in text]


def kept(cache: Path) -> list[str]:
    """The suffixes of what the cache holds."""
    return sorted(path.suffix for path in cache.glob("*") if path.suffix != ".lock")


def work(file: Path, tokenizer: Counting) -> list[str]:
    """What a tokenizer had to do for the ids of a file, which are right."""
    ids = token_ids(str(file), tokenizer)
    assert isinstance(ids, np.memmap)
    assert ids.tolist() == expected(file.read_bytes().decode())
    return tokenizer.work


def test_a_small_text_stays_in_memory(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "LARGE_BYTES", len(TEXT.encode()) + 1)
    ids = token_ids(str(file), CharTokenizer())
    assert not isinstance(ids, np.memmap)
    assert ids.tolist() == expected(TEXT)
    assert not cache.exists()


def test_standard_input_is_read_once_and_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_text("a file of that name")
    monkeypatch.setattr(corpus, "_standard_input", lambda: TEXT.encode())
    assert token_ids("-", CharTokenizer()).tolist() == expected(TEXT)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="Not a regular file"):
        token_ids(str(tmp_path / "pipe"), CharTokenizer())


def test_tokens_that_cross_the_borders_of_chunks_are_stored_whole(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1)
    tokenizer = BytePairs()
    ids = token_ids(str(file), tokenizer)
    assert isinstance(ids, np.memmap)
    assert ids.tolist() == BytePairs().fit(TEXT).encode(TEXT).tolist()
    assert len(ids) < len(TEXT.encode())
    assert tokenizer.decode(ids) == TEXT


def test_sub_words_of_a_large_text_are_learned_once(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = BPETokenizer(270).fit(TEXT)
    tokenizer = BPETokenizer(270)
    ids = token_ids(str(file), tokenizer)
    assert isinstance(ids, np.memmap)
    assert ids.dtype == np.uint16
    assert ids.tolist() == expected.encode(TEXT).tolist()
    assert tokenizer.spec() == expected.spec()
    assert kept(cache) == [".json", ".npy"]

    def fail(*args: object) -> str:
        raise AssertionError("learned again")

    monkeypatch.setattr(bpe, "learned", fail)
    again = BPETokenizer(270)
    assert token_ids(str(file), again).tolist() == ids.tolist()
    assert again.spec() == expected.spec()
    assert token_ids(str(file), expected).tolist() == ids.tolist()
    assert kept(cache) == [".json", ".npy"]
    with pytest.raises(AssertionError, match="learned again"):
        token_ids(str(file), BPETokenizer(271))


@pytest.mark.parametrize("vocabulary", ["{", "null", None])
def test_a_damaged_vocabulary_is_learned_anew(file: Path, cache: Path, vocabulary: object) -> None:
    ids = token_ids(str(file), BPETokenizer(270)).tolist()
    (path,) = cache.glob("*.json")
    init_args = json.loads(path.read_text())["init_args"] | {"vocabulary": vocabulary}
    digest = token_cache._digest(init_args)
    path.write_text(json.dumps({"digest": digest, "init_args": init_args}))
    assert token_ids(str(file), BPETokenizer(270)).tolist() == ids


def test_a_vocabulary_that_the_text_cannot_give_leaves_nothing(file: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"^--data.corpus '.*mine.txt': vocab_size 9999 is more"):
        token_ids(str(file), BPETokenizer(9999))
    assert kept(cache) == []


def test_the_bytes_of_a_large_text_are_its_ids(file: Path) -> None:
    assert bytes(token_ids(str(file), ByteTokenizer())) == TEXT.encode()


def test_a_large_text_is_mapped_and_read_only(file: Path, cache: Path) -> None:
    tokenizer = CharTokenizer()
    ids = token_ids(str(file), tokenizer)
    assert isinstance(ids, np.memmap)
    assert ids.tolist() == expected(TEXT)
    assert ids.dtype == np.uint8
    assert not ids.flags.writeable
    assert tokenizer.vocabulary == "".join(sorted(set(TEXT)))
    assert kept(cache) == [".json", ".npy"]


@pytest.mark.parametrize("size", [256, 257, 65_537])
def test_ids_of_every_width_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(growing, "SETTLE_BYTES", 10_000)
    text = "".join(chr(0x20000 - i) for i in range(size)) + "a"
    (tmp_path / "wide.txt").write_text(text)
    ids = token_ids(str(tmp_path / "wide.txt"), CharTokenizer())
    assert ids.tolist() == expected(text)
    assert ids.itemsize == (2 if size < 1 << 16 else 4)


def test_a_text_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert work(file, Counting()) == ["fit", "encode"]
    assert work(file, Counting()) == []
    monkeypatch.chdir(file.parent)
    assert work(Path(file.name), Counting()) == []


def test_a_tokenizer_that_learned_from_the_text_finds_its_ids(file: Path, cache: Path) -> None:
    work(file, Counting())
    assert work(file, Counting("".join(sorted(set(TEXT))))) == []
    assert kept(cache) == [".json", ".npy"]


def test_other_arguments_and_classes_have_entries_of_their_own(file: Path, cache: Path) -> None:
    work(file, Counting())
    backwards = "".join(sorted(set(TEXT), reverse=True))
    ids = token_ids(str(file), CharTokenizer(backwards))
    assert ids.tolist() == [backwards.index(character) for character in TEXT]
    assert work(file, Counting()) == []
    token_ids(str(file), CharTokenizer())
    assert kept(cache) == [".json"] * 2 + [".npy"] * 3


def test_a_tokenizer_whose_code_has_changed_works_anew(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(file, Counting())
    monkeypatch.setattr(token_cache, "_source", lambda cls: "other code")
    assert work(file, Counting()) == ["fit", "encode"]


@pytest.mark.parametrize("same_times", [False, True])
def test_a_changed_text_is_read_anew_and_its_old_ids_go(
    file: Path, cache: Path, same_times: bool
) -> None:
    old = token_ids(str(file), Counting())
    before = file.stat()
    file.write_bytes(TEXT.replace("B", "W").encode())
    if same_times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert work(file, Counting()) == ["fit", "encode"]
    assert kept(cache) == [".json", ".npy"]
    assert old.tolist() == expected(TEXT)  # who still uses the old file keeps it


def test_the_ids_of_other_texts_stay(file: Path, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("other")
    work(file, Counting())
    work(other, Counting())
    file.write_text("changed")
    work(file, Counting())
    assert work(other, Counting()) == []
    assert kept(cache) == [".json", ".json", ".npy", ".npy"]


def test_a_text_that_changes_meanwhile_is_refused(file: Path, cache: Path) -> None:
    class Slow(CharTokenizer):
        def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
            yield from super().encode_chunks(chunks)
            with file.open("a") as more:
                more.write("a")

    with pytest.raises(
        DataError, match=r"--data.corpus '.*mine.txt': changed while it was being read"
    ):
        token_ids(str(file), Slow())
    assert kept(cache) == [".json"]
    assert work(file, Counting()) == ["fit", "encode"]


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


def resident_file_mb() -> float:
    """MB of mapped files in the memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) / 1000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_ids_from_the_cache_are_not_all_read_when_they_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the sizes of real texts, not those of this file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "large.txt"
    file.write_bytes(b"abcdefghijklmnop" * (4 << 20))
    token_ids(str(file), CharTokenizer())
    before = resident_file_mb()
    ids = token_ids(str(file), CharTokenizer())
    assert isinstance(ids, np.memmap)
    assert len(ids) == 64 << 20
    # The system maps what lies around a page that is read: up to 2 MB for each of 16 blocks.
    assert resident_file_mb() - before < 34
