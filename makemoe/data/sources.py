"""Finds the files of a corpus: one file, those below a folder, or those that match a pattern.

Their order is that of their names, compared byte by byte, so that it is the same on every machine.
"""

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from makemoe.data.compressed import STREAMS, suffixes
from makemoe.data.corpus import NAMES, file_of
from makemoe.data.reading import reading
from makemoe.errors import DataError
from makemoe.files import STANDARD_INPUT

TEXT, LINES = ".txt", ".jsonl"
COUNT = f"{TEXT} or {LINES}, also followed by {' or '.join(STREAMS)}"
"""Which suffixes count in a folder."""

Seen = set[tuple[int, int]]
"""Folders that were read already, by device and number: links may lead to them again."""


def sources(corpus: str) -> tuple[str, list[str]]:
    """The folder of a corpus, or an empty string, and the names of its files from there.

    A folder is searched with its subfolders, and only files with certain suffixes count. A pattern
    takes every file that it matches, and searches the folders that it matches. Hidden files are
    left out, unless they are named. Raises DataError if there is no file.
    """
    if corpus == STANDARD_INPUT:
        return "", [corpus]
    path = file_of(corpus)
    if corpus in NAMES:
        return "", [path]
    if os.path.isdir(path):
        names = sorted(_below(path, "", set()), key=os.fsencode)
        if not names:
            raise DataError(f"no text in this folder; files count that end with {COUNT}")
        return path, names
    if os.path.lexists(path) or not _is_pattern(path):
        return "", [path]
    top, *parts = _split(path)
    found = set(_matches(top, "", parts, set()))
    if not found:
        raise DataError("no file matches this pattern; check it, or pass a folder")
    return top, sorted(found, key=os.fsencode)


def is_lines(name: str) -> bool:
    """Whether a file of that name has a document on each line."""
    return suffixes(name)[0] == LINES


def _below(top: str, folder: str, seen: Seen) -> Iterator[str]:
    """Names, from `top`, of the texts below a folder."""
    for inner in _folders(top, folder, seen):
        for entry in _entries(top, inner):
            if suffixes(entry.name)[0] in (TEXT, LINES) and not _is_folder(entry):
                yield inner + entry.name


def _folders(top: str, folder: str, seen: Seen) -> Iterator[str]:
    """A folder and those below it that were not seen yet, each as the beginning of a name."""
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        with reading(folder):
            status = os.stat(os.path.join(top, folder))
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder
        inner = [folder + entry.name + "/" for entry in _entries(top, folder) if _is_folder(entry)]
        waiting += reversed(inner)


def _entries(top: str, folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, by name."""
    with reading(folder), os.scandir(os.path.join(top, folder)) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(shown, key=lambda entry: os.fsencode(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; whoever reads it tells
        return False


def _is_pattern(part: str) -> bool:
    return any(character in part for character in "*?[")


def _split(pattern: str) -> list[str]:
    """The folder in which a search begins, and the parts of the pattern from there."""
    parts = pattern.split("/")
    first = next(place for place, part in enumerate(parts) if _is_pattern(part))
    top = "/".join(parts[:first])
    return [f"{top}/" if first else ".", *(part for part in parts[first:] if part)]


def _matches(top: str, folder: str, parts: list[str], seen: Seen) -> Iterator[str]:
    """Names, from `top`, of the files in a folder that match the parts of a pattern."""
    part, *rest = parts
    if part == "**":
        for inner in list(_folders(top, folder, set())):
            yield from _matches(top, inner, rest or ["*"], seen)
    elif _is_pattern(part):
        for entry in _entries(top, folder):
            if fnmatchcase(entry.name, part):
                yield from _matched(top, folder + entry.name, rest, seen)
    elif os.path.lexists(os.path.join(top, folder, part)):
        yield from _matched(top, folder + part, rest, seen)


def _matched(top: str, name: str, rest: list[str], seen: Seen) -> Iterable[str]:
    if not os.path.isdir(os.path.join(top, name)):
        return () if rest else (name,)
    return _matches(top, f"{name}/", rest, seen) if rest else _below(top, f"{name}/", seen)
