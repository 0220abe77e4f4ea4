"""YAML for settings: one document of plain values, without repeated keys, growth or code.

jsonargparse reads config files and the values of flags with `load_yaml`, once `read_strictly` has
been called.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from makemoe.errors import UsageError
from makemoe.files import read_whole

MOST_BYTES = 1 << 20
MOST_DEPTH = 50
MOST_VALUES = 10_000  # of one document, with every alias expanded

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
jsonargparse_load = get_loader("yaml")
"""Loads YAML by jsonargparse's rules: 1e-3 is a number, 2001-01-01 is a string."""


def read_strictly() -> None:
    """Make jsonargparse read all YAML with `load_yaml`."""
    set_loader("yaml", load_yaml, (yaml.YAMLError,))


def read_config(file: str) -> str:
    """The text of a config file; UsageError as `read_settings`."""
    return _config(file)[0]


def read_settings(file: str) -> dict[str, Any]:
    """The settings in a config file.

    Raises:
        UsageError: for a file that cannot be read, or is not a mapping of settings.
    """
    return _config(file)[1]


def _config(file: str) -> tuple[str, dict[str, Any]]:
    option = f"--config {file}"
    if file == "-":
        raise UsageError(f"{option}: settings cannot come from standard input: give a file")
    text, settings = read_yaml(option, file)
    if not isinstance(settings, dict):
        raise UsageError(
            f"{option}: contains no settings; see makemoe fit --config quickstart --print_config"
        )
    return text, settings


def read_yaml(option: str, file: str) -> tuple[str, Any]:
    """The text of a YAML file, and its value.

    Args:
        option: what messages begin with.
        file: its path.

    Raises:
        UsageError: for a file that cannot be read, or is not the YAML that `load_yaml` takes.
    """
    try:
        text = read_whole(file, MOST_BYTES).decode()
        return text, load_yaml(text)
    except OSError as error:
        raise UsageError(f"{option}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option}: not UTF-8 at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{option}: {broken(error)}") from error
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def broken(error: yaml.YAMLError) -> str:
    """Where and why a text is not YAML."""
    mark = getattr(error, "problem_mark", None)
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    return f"invalid YAML{where}: {problem}"


def load_yaml(text: str) -> Any:
    """The value of a YAML document: plain values, lists and mappings with distinct string keys.

    Raises:
        yaml.YAMLError: for a text that is not YAML.
        UsageError: for YAML that is too large, too deep, or not only plain values.
    """
    check_text(text)
    try:
        if len(text) > MOST_BYTES:
            raise UsageError(f"larger than {MOST_BYTES >> 20} MiB")
        Scan().scan(text)
        value = jsonargparse_load(text)
    except UsageError:
        raise
    except ValueError as error:  # a number that Python cannot read
        raise UsageError(f"a number that cannot be read: {error}") from error
    check_plain(value)
    return value


@dataclass
class Collection:
    """A list or a mapping that is not complete yet.

    Attributes:
        anchor: its anchor, if it has one.
        keys: the keys of a mapping so far and their lines; None for a list.
        at_key: whether a key comes next.
        values: number of values in it so far, with aliases expanded.
        height: depth of the most deeply nested value.
    """

    anchor: str | None
    keys: dict[str, int] | None
    at_key: bool = True
    values: int = 1
    height: int = 0


@dataclass
class Scan:
    """Checks a document's events before any value is built."""

    within: list[Collection] = field(default_factory=list)
    anchors: dict[str, Collection] = field(default_factory=dict)

    def scan(self, text: str) -> None:
        """Raise the errors of `load_yaml`."""
        events: Iterator[Any] = yaml.parse(text, Loader=Loader)
        for event in events:
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                self.add(self.named(event.anchor or "", line), line)
            elif isinstance(event, yaml.NodeEvent):
                self.begin(event, line)
            elif isinstance(event, yaml.CollectionEndEvent):
                self.add(self.within.pop(), line)

    def begin(self, event: Any, line: int) -> None:
        """Process a scalar, or the start of a collection."""
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise UsageError(f"tag {tag} at line {line}: only plain values are read")
        if self.expects_key():
            self.take_key(event, line)
        keys: dict[str, int] | None = {} if isinstance(event, yaml.MappingStartEvent) else None
        begun = Collection(event.anchor, keys)
        if begun.anchor:
            self.anchors[begun.anchor] = begun
        if isinstance(event, yaml.ScalarEvent):
            self.add(begun, line)
        else:
            self.within.append(begun)
            self.check_depth(0, line)

    def expects_key(self) -> bool:
        """Whether what comes next is a key."""
        return bool(self.within) and self.within[-1].keys is not None and self.within[-1].at_key

    def take_key(self, event: Any, line: int) -> None:
        """Add a key; refuse one that is not a string or is repeated."""
        keys = self.within[-1].keys
        assert keys is not None
        if not isinstance(event, yaml.ScalarEvent):
            raise UsageError(f"a key at line {line} is not a string")
        if event.value.startswith("__"):  # jsonargparse's own
            raise UsageError(f"key {event.value} at line {line} is not a setting")
        if event.value in keys:
            first = keys[event.value]
            where = f"at line {line}" if first == line else f"at lines {first} and {line}"
            raise UsageError(f"key {event.value} is given twice, {where}")
        keys[event.value] = line

    def named(self, anchor: str, line: int) -> Collection:
        """The value that an alias refers to."""
        if self.expects_key():
            raise UsageError(f"a key at line {line} is not a string")
        if any(collection.anchor == anchor for collection in self.within):
            raise UsageError(f"*{anchor} at line {line} contains itself")
        return self.anchors.get(anchor) or Collection(anchor, None)  # the loader refuses it

    def add(self, value: Collection, line: int) -> None:
        """Add a complete value to the collection that contains it."""
        self.check_depth(value.height, line)
        if not self.within:
            return
        around = self.within[-1]
        around.at_key = not around.at_key
        around.values += value.values
        around.height = max(around.height, value.height + 1)
        if around.values > MOST_VALUES:
            raise UsageError(f"more than {MOST_VALUES} values by line {line}")

    def check_depth(self, height: int, line: int) -> None:
        """Refuse values that are nested too deep, with aliases expanded."""
        if len(self.within) + height > MOST_DEPTH:
            raise UsageError(f"nested more than {MOST_DEPTH} deep at line {line}")


def check_text(text: str, of: str = "") -> None:
    """Refuse characters that no setting may contain, because no file or path can."""
    if "\0" in text:
        raise UsageError(f"{of}a character NUL, which no setting may contain")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{of}not valid Unicode (an unpaired surrogate)")


def check_plain(value: Any, named: str = "") -> None:
    """Refuse numbers, strings and keys that no setting may contain, at any depth of a value."""
    for key, part in parts(named, value):
        of = f"{key}: " if key else ""
        if isinstance(part, str):
            check_text(part, of)
        elif isinstance(part, int) and abs(part) >= 1 << 63:
            raise UsageError(f"{of}a number of 2**63 or more, which no setting may contain")
        elif isinstance(part, float) and not math.isfinite(part):
            raise UsageError(f"{of}{part} is not a finite number")


def parts(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a value and all values nested in it, each with its key."""
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise UsageError(f"key {name} is not a string")
            yield key, name
            yield from parts(f"{key}.{name}" if key else name, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from parts(key, inner)
