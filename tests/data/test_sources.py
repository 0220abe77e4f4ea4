import os
from pathlib import Path

import pytest

from makemoe.data import corpus
from makemoe.data.sources import is_lines, sources
from makemoe.errors import DataError


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)


def refusal(name: str) -> str:
    with pytest.raises(DataError) as caught:
        sources(name)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


def test_a_folder_is_searched_for_texts_with_its_subfolders() -> None:
    make("c/b.txt", "c/a.jsonl", "c/deep/er/x.txt.gz", "c/deep/y.JSONL.ZST")
    make("c/picture.png", "c/data.gz", "c/x.json", "c/txt", "c/.hidden.txt", "c/.git/x.txt")
    expected = ["a.jsonl", "b.txt", "deep/er/x.txt.gz", "deep/y.JSONL.ZST"]
    assert sources("c") == ("c", expected)
    assert sources("c/") == ("c/", expected)
    assert sources(os.path.abspath("c"))[1] == expected


def test_names_are_sorted_by_bytes() -> None:
    make(
        "c/b.txt", "c/B.txt", "c/a/z.txt", "c/a.txt", "c/é.txt", "c/\U0001f600.txt", "c/\uffff.txt"
    )
    _, names = sources("c")
    assert names == ["B.txt", "a.txt", "a/z.txt", "b.txt", "é.txt", "\uffff.txt", "\U0001f600.txt"]


def test_a_name_that_is_not_text_is_a_name(tmp_path: Path) -> None:
    os.mkdir("c")
    Path(os.fsdecode(b"c/\xff.txt")).write_text("x")
    assert sources("c") == ("c", [os.fsdecode(b"\xff.txt")])


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("c/*.txt", ["a.txt", "b.txt"]),
        ("c/[a]*", ["a.txt"]),
        ("c/?.txt", ["a.txt", "b.txt"]),
        ("c/*", ["a.txt", "b.txt", "n/x.txt", "n/y/x.txt", "note.md"]),
        ("c/*/x.txt", ["n/x.txt"]),
        ("c/**/x.txt", ["n/x.txt", "n/y/x.txt"]),
        ("c/**/y/*.md", ["n/y/z.md"]),
        ("c/**/**/*.txt", ["a.txt", "b.txt", "n/x.txt", "n/y/x.txt"]),
        ("c/**", ["a.txt", "b.txt", "n/x.txt", "n/y/x.txt", "n/y/z.md", "note.md"]),
        ("c/*.md", ["note.md"]),
        ("c//*.md", ["note.md"]),
        ("c/n/../*.md", ["note.md"]),
    ],
)
def test_a_pattern_takes_what_it_matches(pattern: str, found: list[str]) -> None:
    make("c/a.txt", "c/b.txt", "c/note.md", "c/n/x.txt", "c/n/y/x.txt", "c/n/y/z.md", "c/.a.txt")
    top, names = sources(pattern)
    assert [os.path.normpath(os.path.join(top, name)) for name in names] == [
        f"c/{name}" for name in found
    ]


def test_a_pattern_may_begin_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    make("c/a.txt", "d/a.txt", "e/b.txt")
    assert sources("*/a.txt") == (".", ["c/a.txt", "d/a.txt"])
    assert sources(os.path.abspath("*/a.txt"))[1] == ["c/a.txt", "d/a.txt"]
    monkeypatch.setenv("HOME", os.getcwd())
    assert sources("~/*/b.txt")[1] == ["e/b.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file() -> None:
    make("a[1].txt", "a1.txt", "d[1]/x.txt")
    assert sources("a[1].txt") == ("", ["a[1].txt"])
    assert sources("d[1]") == ("d[1]", ["x.txt"])


def test_names_of_texts_are_not_looked_up() -> None:
    make("sample/a.txt", "-/a.txt")
    path = str(Path(corpus.__file__).with_name("sample.txt"))
    assert sources("sample") == ("", [path])
    assert sources("./sample") == ("./sample", ["a.txt"])
    assert sources("-") == ("", ["-"])


def test_what_is_missing_is_left_to_reading() -> None:
    assert sources("no.txt") == ("", ["no.txt"])


def test_a_folder_that_links_lead_to_again_is_read_once() -> None:
    make("c/a/x.txt", "c/y.txt")
    os.symlink("..", "c/a/up")
    os.symlink("a", "c/b")
    os.symlink(".", "c/same")
    assert sources("c")[1] == ["a/x.txt", "y.txt"]
    assert sources("c/**/*.txt")[1] == ["a/x.txt", "y.txt"]


def test_links_to_files_and_folders_elsewhere_are_followed() -> None:
    make("elsewhere/x.txt", "z.txt")
    os.mkdir("c")
    os.symlink("../elsewhere", "c/folder")
    os.symlink("../z.txt", "c/file.txt")
    assert sources("c")[1] == ["file.txt", "folder/x.txt"]


def test_a_link_that_leads_nowhere_is_a_source_that_reading_refuses() -> None:
    os.mkdir("c")
    os.symlink("self.txt", "c/self.txt")
    os.symlink("gone", "c/gone.txt")
    assert sources("c")[1] == ["gone.txt", "self.txt"]


def test_a_folder_that_is_called_like_a_text_is_searched() -> None:
    make("c/a.txt/b.txt")
    assert sources("c")[1] == ["a.txt/b.txt"]


def test_a_folder_without_texts_says_what_counts() -> None:
    make("c/picture.png")
    assert refusal("c") == (
        "no text in this folder; files count that end with .txt or .jsonl, also followed by .gz or "
        ".zst"
    )


@pytest.mark.parametrize("pattern", ["c/*.md", "c/*/x.txt", "**/*.md"])
def test_a_pattern_without_matches_is_refused(pattern: str) -> None:
    make("c/a.txt")
    assert "no file matches this pattern" in refusal(pattern)


@pytest.mark.parametrize("pattern", ["no/*.txt", "a\0b/*", "c/a.txt/*"])
def test_a_pattern_in_no_folder_is_refused(pattern: str) -> None:
    make("c/a.txt")
    assert refusal(pattern)


@pytest.mark.parametrize(
    ("name", "lines"),
    [("a.jsonl", True), ("A.JSONL.GZ", True), ("a.jsonl.txt", False), ("jsonl", False)],
)
def test_a_jsonl_file_has_lines(name: str, lines: bool) -> None:
    assert is_lines(name) is lines
