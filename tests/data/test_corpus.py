import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import refusal, unprivileged

from makemoe.data import corpus, reading
from makemoe.data.corpus import load_text, read_chunks


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    text = "é\r\n\U0001f600\rx\n\ufeff\0"
    file.write_bytes(text.encode())
    assert load_text(str(file)) == text


def test_only_a_leading_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "a\ufeffb".encode())
    assert load_text(str(file)) == "a\ufeffb"


@pytest.mark.parametrize("block_bytes", [3, 4, 5, 6, 7, 1 << 16])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\ufeff\ufeff"])
def test_blocks_may_end_within_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, mark: str
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", block_bytes)
    file = tmp_path / "mine.txt"
    text = "aé€\U0001f600" * 20
    file.write_bytes((mark + text).encode())
    chunks = list(read_chunks(str(file)))
    assert "".join(chunks) == mark[1:] + text
    assert all(chunks)
    assert max(len(chunk.encode()) for chunk in chunks) <= block_bytes + 3


def test_a_second_character_in_a_later_block_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 8)
    file = tmp_path / "mine.txt"
    file.write_text("a" * 100 + "b")
    assert load_text(str(file)) == "a" * 100 + "b"


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Put bytes where standard input is."""

    def pipe(content: bytes) -> None:
        corpus._standard_input.cache_clear()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    yield pipe
    corpus._standard_input.cache_clear()


def test_standard_input_is_the_same_text_each_time(
    piped: Callable[[bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_text("a file of that name")
    monkeypatch.setattr(reading, "BLOCK_BYTES", 3)
    piped("\ufeffGrüße, Bürger!\r\n".encode())
    for _ in range(3):
        assert load_text("-") == "Grüße, Bürger!\r\n"
    assert load_text("./-") == "a file of that name"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "is empty"), (b"aaa", "contains only"), (b"ab\xff", "offset 2"), (b"ab" * 50, "Larger")],
)
def test_standard_input_that_is_no_text_is_refused(
    piped: Callable[[bytes], None],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    problem: str,
) -> None:
    monkeypatch.setattr(corpus, "MOST_STANDARD_INPUT", 99)
    piped(content)
    assert problem in refusal(load_text, "-")


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "RANK"])
def test_standard_input_is_not_shared_by_processes(
    piped: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    piped(b"abc")
    monkeypatch.setenv(variable, "0")
    assert "several processes" in refusal(load_text, "-")


def test_no_standard_input_is_told(
    piped: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(b"")
    monkeypatch.setattr(sys, "stdin", None)
    assert "closed" in refusal(load_text, "-")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "pipe", "loop"])
def test_only_a_regular_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    assert f"{path!r}: cannot be read (" in refusal(load_text, path)


def test_reading_for_long_shows_a_bar_on_a_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BAR_DELAY_S", 0.02)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 10)
    file = tmp_path / "mine.txt"
    file.write_text("ab" * 50)
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        for _ in read_chunks(str(file)):
            time.sleep(0.02)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("reading mine.txt" in err) == terminal
    monkeypatch.setattr(reading, "BAR_DELAY_S", 60.0)
    load_text(str(file))
    assert capsys.readouterr() == ("", "")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("ab")
    assert load_text("~/mine.txt") == "ab"


def test_the_sample_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").write_text("ab")
    file = Path(corpus.__file__).with_name("sample.txt")
    assert load_text("sample") == file.read_bytes().decode()
    assert load_text("./sample") == "ab"


def test_a_missing_file_names_the_mend(tmp_path: Path) -> None:
    path = str(tmp_path / "no.txt")
    assert refusal(load_text, path).startswith(
        f"--data.corpus {path!r}: no such file; check the path"
    )
    assert "no such file" in refusal(load_text, "")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("smaple", "sample"),
        ("Sample", "sample"),
        ("shakespeare", "tinyshakespeare"),
        ("tiny_shakespeare", "tinyshakespeare"),
    ],
)
def test_a_misspelt_name_is_told_the_right_one(name: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in refusal(load_text, name)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert f"{str(tmp_path)!r}: is a folder" in refusal(load_text, str(tmp_path))


def test_an_unreadable_file_is_refused() -> None:
    with unprivileged() as folder:
        assert "no permission" in refusal(load_text, str(folder / "secret.txt"))


@pytest.mark.parametrize("path", ["a\0b", "a" * 10_000, "/dev/null/a\nb"])
def test_an_impossible_path_is_refused_in_one_line(path: str) -> None:
    assert repr(path) in refusal(load_text, path)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    assert "empty" in refusal(load_text, str(file))


@pytest.mark.parametrize(
    ("content", "byte", "offset"),
    [
        (b"caf\xe9 au lait", "0xe9", 3),
        (b"\xef\xbb\xbfcaf\xe9", "0xe9", 6),  # counted in the file, byte order mark included
        ("ab".encode("utf-16"), "0xff", 0),
        (b"ab\xf0\x9f\x98", "0xf0", 2),  # cut off within a character
        (b"ab\xed\xa0\x80", "0xed", 2),  # a surrogate
        ("aé€\U0001f600".encode() + b"b\xe2\x82c", "0xe2", 11),
    ],
)
@pytest.mark.parametrize("block_bytes", [3, 4, 5, 7, 1 << 16])
def test_a_text_that_is_not_utf8_names_the_byte_and_its_offset(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    byte: str,
    offset: int,
    block_bytes: int,
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", block_bytes)
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    message = refusal(load_text, str(file))
    assert f"byte {byte} at offset {offset};" in message
    assert str(file) in message


def test_a_text_of_one_distinct_character_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\n" * 1000)
    assert r"contains only '\n'" in refusal(load_text, str(file))
