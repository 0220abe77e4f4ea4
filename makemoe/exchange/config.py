"""Settings in a JSON file of a stranger, each checked when it is asked for."""

import json
from pathlib import Path
from typing import Any

from makemoe.errors import CheckpointError
from makemoe.files import read_whole

MOST_BYTES = 64 << 20
"""Limit for a JSON file; the largest are indices of shards and tokenizers."""

LARGEST = 1e300
"""Limit for numbers; JSON has no infinity, but Python reads one."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: for a file that cannot be read or holds anything else.
    """
    try:
        values = json.loads(read_whole(path, MOST_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of UTF-8 or of JSON
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not an object of settings")
    return values


class Config:
    """The settings of a model in a config.json.

    Of several names of one setting, the first that is there is read. A setting that is null is not
    there.

    Args:
        path: the file, for messages.
        values: what it holds.
        within: the name of the setting that holds these, with a dot; empty for the file itself.
    """

    def __init__(self, path: Path, values: dict[str, Any], within: str = "") -> None:
        self.path, self.values, self.within = path, values, within

    def has(self, name: str) -> bool:
        """Whether a setting is there."""
        return self.values.get(name) is not None

    def integer(self, *names: str, default: int | None = None) -> int:
        """An integer of 0 or more; CheckpointError if it has no default and is not there."""
        value = self._value(names, default)
        if type(value) is not int or value < 0:
            raise self._wrong(names, value, "an integer of 0 or more")
        return value

    def integers(self, name: str) -> list[int]:
        """A list of integers; empty if it is not there."""
        value = self._value((name,), [])
        if not isinstance(value, list) or not all(type(one) is int for one in value):
            raise self._wrong((name,), value, "a list of integers")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self._value((name,), default)
        if type(value) not in (int, float) or not abs(value) < LARGEST:
            raise self._wrong((name,), value, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value((name,), default)
        if type(value) is not bool:
            raise self._wrong((name,), value, "true or false")
        return value

    def word(self, name: str, default: str) -> str:
        """A string."""
        value = self._value((name,), default)
        if type(value) is not str:
            raise self._wrong((name,), value, "a string")
        return value

    def section(self, *names: str) -> "Config":
        """The settings within a setting; none if it is not there."""
        name = next((name for name in names if self.has(name)), names[0])
        value = self._value((name,), {})
        if not isinstance(value, dict):
            raise self._wrong((name,), value, "an object")
        return Config(self.path, value, f"{self.within}{name}.")

    def _value(self, names: tuple[str, ...], default: Any) -> Any:
        found = next((self.values[name] for name in names if self.has(name)), default)
        if found is None:
            raise CheckpointError(f"{self.path} lacks {self.within}{names[0]}")
        return found

    def _wrong(self, names: tuple[str, ...], value: Any, kind: str) -> CheckpointError:
        name = next((name for name in names if self.has(name)), names[0])
        return CheckpointError(f"{self.path}: {self.within}{name} is {value!r:.60}, not {kind}")
