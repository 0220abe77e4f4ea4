import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from byte_pairs import BytePairs
from large_text import TEXT, Counting, expected, in_pieces, kept, work, written

from makemoe.data import bpe, corpus, growing, reading, token_cache
from makemoe.data.bpe import BPETokenizer
from makemoe.data.token_cache import token_ids
from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer, Ids
from makemoe.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return in_pieces(tmp_path, monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path)


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
