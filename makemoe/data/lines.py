"""The lines of a .jsonl file, and the text in one of them."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from makemoe.data.reading import MARK, not_utf_8
from makemoe.errors import DataError

MOST_LINE_BYTES = 16 << 20
"""Maximum size of a line, which is held in memory."""

FEW_KEYS, LONGEST_KEY = 5, 40
"""How many keys of a line an error shows, and how much of each."""

SURROGATE = re.compile("[\ud800-\udfff]")
KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
"""Values of JSON in words."""


class RawLine(NamedTuple):
    """A line without its newline.

    Attributes:
        content: its bytes.
        number: counted from 1.
        begin: offset of its first byte in the file.
        end: offset of the next line.
    """

    content: bytes
    number: int
    begin: int
    end: int

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing on it."""
        return not self.content or self.content.isspace()


def split_lines(blocks: Iterable[bytes], begin: int = 0, before: int = 0) -> Iterator[RawLine]:
    """The lines of a file.

    Args:
        blocks: its content, from the beginning of a line on.
        begin: bytes of the file before it.
        before: lines of the file before it.

    Raises:
        DataError: for a line of more than MOST_LINE_BYTES.
    """
    number, parts, held = before + 1, list[bytes](), 0
    for block in blocks:
        *ends, rest = block.split(b"\n")
        for part in ends:
            content = b"".join((*parts, part)) if parts else part
            end = begin + len(content) + 1
            yield RawLine(content, number, begin, end)
            begin, number, parts, held = end, number + 1, [], 0
        if rest:
            parts.append(rest)
            held += len(rest)
        if held > MOST_LINE_BYTES:
            raise DataError(
                f"line {number} has more than {MOST_LINE_BYTES >> 20} MiB; put such a document in "
                "a .txt file"
            )
    if parts:
        yield RawLine(b"".join(parts), number, begin, begin + held)


def text_in(line: RawLine, key: str) -> str:
    """The string with that key in the object on a line; DataError if there is none."""
    content = line.content if line.begin else line.content.removeprefix(MARK)
    try:
        record = json.loads(content.decode())
    except UnicodeDecodeError as error:
        offset = line.begin + len(line.content) - len(content)
        raise DataError(f"line {line.number}: {not_utf_8(error, offset)}") from error
    except json.JSONDecodeError as error:
        where = f"column {error.colno}"
        raise DataError(
            f"line {line.number} is not JSON: {error.msg}, {where}; {_form(key)}"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers and brackets without end
        reason = " ".join(str(error).split())
        raise DataError(
            f"line {line.number} cannot be read as JSON: {reason}; {_form(key)}"
        ) from error
    if not isinstance(record, dict):
        raise DataError(f"line {line.number} is {_kind(record)}; {_form(key)}")
    if key not in record:
        keys = ", ".join(repr(name[:LONGEST_KEY]) for name in list(record)[:FEW_KEYS]) or "none"
        more = ", ..." if len(record) > FEW_KEYS else ""
        raise DataError(
            f"line {line.number} has no key {key!r}, but {keys}{more}; name one with "
            "--data.text_key"
        )
    text = record[key]
    if not isinstance(text, str):
        raise DataError(
            f"line {line.number}: the value of {key!r} is {_kind(text)}, not a string; name "
            "another key with --data.text_key"
        )
    if not text.isascii() and (surrogate := SURROGATE.search(text)):
        raise DataError(
            f"line {line.number}: the text has the lone surrogate U+{ord(surrogate[0]):04X}, which "
            "UTF-8 does not have; remove it"
        )
    return text


def _form(key: str) -> str:
    return f"each line must be an object with the key {key!r}"


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "null" if value is None else "a number")
