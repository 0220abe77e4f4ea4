import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemoe.data import lines
from makemoe.data.lines import RawLine, split_lines, text_in
from makemoe.errors import DataError

CHARACTERS = st.characters(exclude_categories=["Cs"])


def cut(content: bytes, size: int) -> list[bytes]:
    return [content[i : i + size] for i in range(0, len(content), size)]


@given(st.binary().map(lambda b: b.replace(b"x", b"\n")), st.integers(1, 9))
def test_lines_are_what_splitting_gives_wherever_blocks_end(content: bytes, size: int) -> None:
    found = list(split_lines(cut(content, size)))
    expected = content.split(b"\n")
    assert [line.content for line in found] == expected[: len(expected) - (not expected[-1])]
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    for line in found:
        assert content[line.begin : line.end].removesuffix(b"\n") == line.content
    assert [line.begin for line in found[1:]] == [line.end for line in found[:-1]]


@given(st.lists(st.text(CHARACTERS)), st.data())
def test_reading_may_begin_at_any_line(texts: list[str], data: st.DataObject) -> None:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    found = list(split_lines([content]))
    first = data.draw(st.integers(0, len(found)))
    begin = found[first].begin if first < len(found) else len(content)
    assert list(split_lines([content[begin:]], begin, first)) == found[first:]


@given(st.text(CHARACTERS), st.booleans(), st.sampled_from(["", "\r", " \t"]))
def test_the_text_of_a_line_is_what_was_written(text: str, ascii: bool, end: str) -> None:
    content = json.dumps({"id": 3, "text": text}, ensure_ascii=ascii).encode() + end.encode()
    assert text_in(RawLine(content, 1, 0, len(content)), "text") == text


def test_a_byte_order_mark_begins_a_file_only() -> None:
    content = b'\xef\xbb\xbf{"text": "a"}'
    assert text_in(RawLine(content, 1, 0, len(content)), "text") == "a"
    with pytest.raises(DataError, match="line 2 is not JSON"):
        text_in(RawLine(content, 2, 10, 10 + len(content)), "text")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"text": ', "line 7 is not JSON: Expecting value, column 10; each line must be"),
        (b"text", "line 7 is not JSON: Expecting value, column 1; each line must be"),
        (b'{"text": "a"} {}', "line 7 is not JSON: Extra data, column 15;"),
        (b"[" * 100_000, "line 7 cannot be read as JSON: maximum recursion depth"),
        (b'{"n": ' + b"1" * 10_000 + b"}", "line 7 cannot be read as JSON: Exceeds the limit"),
        (b'["text"]', "line 7 is a list; each line must be an object with the key 'text'"),
        (b'"text"', "line 7 is a string; each line"),
        (b"true", "line 7 is true or false;"),
        (b"{}", "line 7 has no key 'text', but none; name one with --data.text_key"),
        (b'{"body": 1, "i\\nd": 2}', "line 7 has no key 'text', but 'body', 'i\\nd'; name one"),
        (
            json.dumps(dict.fromkeys(["k" * 50, *"abcdef"])).encode(),
            f"but '{'k' * 40}', 'a', 'b', 'c', 'd', ...; name one",
        ),
        (b'{"text": null}', "line 7: the value of 'text' is null, not a string; name another"),
        (b'{"text": 1.5}', "the value of 'text' is a number, not a string"),
        (b'{"text": ["a"]}', "the value of 'text' is a list, not a string"),
        (b'{"text": {}}', "the value of 'text' is an object, not a string"),
        (b'{"text": "caf\xe9"}', "line 7: not UTF-8: byte 0xe9 at offset 1013; convert it"),
        (b'{"text": "a\\udc80"}', "line 7: the text has the lone surrogate U+DC80"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_line_without_a_text_is_refused_in_one_line(content: bytes, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        text_in(RawLine(content, 7, 1000, 1000 + len(content)), "text")
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_offset_of_a_byte_is_that_in_the_file() -> None:
    content = b'\xef\xbb\xbf{"text": "\xff"}'
    with pytest.raises(DataError, match="offset 13;"):
        text_in(RawLine(content, 1, 0, len(content)), "text")
    assert content[13] == 0xFF


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_is_too_long_for_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr(lines, "MOST_LINE_BYTES", 1 << 20)
    endless: list[Any] = [b"{}\n", *[b"a" * 65536] * 17, end]
    with pytest.raises(DataError, match=r"^line 2 has more than 1 MiB; put such a document in a"):
        list(split_lines(endless))
