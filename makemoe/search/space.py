"""What a sweep searches: the section `sweep` of a config file."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import yaml

from makemoe.errors import UsageError
from makemoe.search.variants import TAKEN, short_keys, short_values

Kind = Literal["int", "float", "choice"]
KINDS = {"int": "int", "log_int": "int", "float": "float", "log": "float"}
"""How a range is written, and what kind of values it has; `log` ones are searched by ratios."""

WIDTH = "model.experts.hidden"
"""The option that follows from the others if trials have equal FLOPs."""

NOT_SEARCHED = TAKEN | {
    "trainer.max_steps": "all trials train on as many tokens as the config says",
    "config": "search options; a config file would bring several",
    "trust": "give --trust MODULE",
}
"""Options that cannot be searched, and what to do instead."""

MOST_TRIALS, MOST_SEEDS, MOST_CHOICES = 100_000, 100, 1000

Value = int | float | str
"""What a trial has of an option: a number, or the words of a choice."""


@dataclass(frozen=True)
class Dimension:
    """An option, and the values it may have.

    Attributes:
        key: the option of `makemoe fit`.
        kind: what its values are.
        low: the smallest number.
        high: the largest number.
        log: whether ratios matter, not differences.
        choices: the values of a choice, as the command line has them.
    """

    key: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def ends(self) -> list[Value]:
        """The values that are tried to see whether `makemoe fit` takes them."""
        if self.kind == "choice":
            return list(self.choices)
        ends = [self.low] if self.low == self.high else [self.low, self.high]
        return [int(end) for end in ends] if self.kind == "int" else [*ends]

    def word(self, value: Value) -> str:
        """The option with a value."""
        return f"--{self.key}={value}"

    def told(self) -> str:
        """The option and its range in words."""
        if self.kind == "choice":
            return f"{self.key}: {', '.join(self.choices)}"
        return f"{self.key}: {self.low:g} to {self.high:g}{', by ratios' if self.log else ''}"


class Part(NamedTuple):
    """A class of Optuna and its arguments."""

    class_path: str
    init_args: dict[str, Any]


EXHAUSTIVE = ("GridSampler", "BruteForceSampler")
"""Samplers that end a study by themselves, from within Optuna's own loop."""

TPE, MEDIAN = Part("optuna.samplers.TPESampler", {}), Part("optuna.pruners.MedianPruner", {})


@dataclass(frozen=True)
class Sweep:
    """What a sweep does.

    Attributes:
        space: the options that are searched.
        trials: number of trials.
        seeds: runs per trial, whose mean counts.
        equal: `flops`: the width of the experts makes the FLOPs per token those of the config;
            `tokens`: trials have equal tokens only.
        sampler: proposes values.
        pruner: ends trials that do badly; None: none are ended.
        storage: URL of Optuna's database; None: a file in the folder of the sweep.
    """

    space: tuple[Dimension, ...]
    trials: int = 30
    seeds: int = 1
    equal: Literal["flops", "tokens"] = "flops"
    sampler: Part = TPE
    pruner: Part | None = MEDIAN
    storage: str | None = None

    def searched(self) -> dict[str, Any]:
        """What must not change while a study goes on."""
        return {
            "space": {one.key: asdict(one) | {"choices": list(one.choices)} for one in self.space},
            "seeds": self.seeds,
            "equal": self.equal,
        }

    def short(self) -> dict[str, str]:
        """The options as tables show them."""
        keys = [one.key for one in self.space]
        return dict(zip(keys, short_keys(keys), strict=True))


def read_sweep(settings: Any) -> Sweep:
    """Read the section.

    Raises:
        UsageError: naming the setting that is wrong.
    """
    known = {"space", "trials", "seeds", "equal", "sampler", "pruner", "storage"}
    settings = _mapping(settings, "sweep")
    for key in settings:
        if key not in known:
            raise UsageError(f"sweep.{key} is unknown: use {', '.join(sorted(known))}")
    space = settings.get("space")
    if not space:
        raise UsageError("sweep.space is empty: name the options to search, and their ranges")
    dimensions = tuple(_dimension(key, one) for key, one in _mapping(space, "sweep.space").items())
    found: dict[str, Any] = {"space": dimensions}
    for name, most in (("trials", MOST_TRIALS), ("seeds", MOST_SEEDS)):
        if name in settings:
            found[name] = count(settings[name], f"sweep.{name}", most)
    if "equal" in settings:
        if settings["equal"] not in ("flops", "tokens"):
            raise UsageError(f"sweep.equal {settings['equal']!r}: use flops or tokens")
        found["equal"] = settings["equal"]
    if "storage" in settings:
        if not isinstance(settings["storage"], str | None):
            raise UsageError("sweep.storage must be a URL")
        found["storage"] = settings["storage"]
    for name in ("sampler", "pruner"):
        if name in settings:
            found[name] = _part(settings[name], f"sweep.{name}")
    sweep = Sweep(**found)
    if sweep.sampler is None:
        raise UsageError("sweep.sampler cannot be null: omit it for TPESampler")
    width = [one.key for one in dimensions if one.key.replace("init_args.", "") == WIDTH]
    if sweep.equal == "flops" and width:
        raise UsageError(
            f"sweep.space.{width[0]} contradicts sweep.equal flops, by which the width follows "
            "from the other options: omit it, or use equal: tokens"
        )
    return sweep


def count(value: Any, name: str, most: int) -> int:
    """A number of things; UsageError for anything else."""
    if type(value) is not int or not 1 <= value <= most:
        raise UsageError(f"{name} {value!r}: use 1 to {most}")
    return value


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{name} must be a mapping of settings")
    return value


def _dimension(key: str, settings: Any) -> Dimension:
    """The range of an option."""
    name = f"sweep.space.{key}"
    if key in NOT_SEARCHED:
        raise UsageError(f"{name}: {NOT_SEARCHED[key]}")
    kinds = ", ".join((*KINDS, "choice"))
    if not isinstance(settings, dict) or len(settings) != 1:
        raise UsageError(f"{name} must be one of {kinds}, such as {{int: [1, 4]}}")
    ((kind, values),) = settings.items()
    if kind not in (*KINDS, "choice"):
        raise UsageError(f"{name}.{kind} is unknown: use {kinds}")
    if not isinstance(values, list) or not values:
        raise UsageError(f"{name}.{kind} must be a list that is not empty")
    if kind == "choice":
        return Dimension(key, "choice", choices=_choices(values, name))
    return _range(key, kind, values, name)


def _choices(values: list[Any], name: str) -> tuple[str, ...]:
    if len(values) > MOST_CHOICES:
        raise UsageError(f"{name}.choice has more than {MOST_CHOICES} values")
    words = tuple(written(value) for value in values)
    for word in words:
        if words.count(word) > 1:
            raise UsageError(f"{name}.choice has {word} twice")
    return words


def _range(key: str, kind: str, ends: list[Any], name: str) -> Dimension:
    numbers = (int,) if KINDS[kind] == "int" else (int, float)
    if len(ends) != 2 or not all(type(end) in numbers and math.isfinite(end) for end in ends):
        what = "whole numbers" if KINDS[kind] == "int" else "numbers"
        raise UsageError(f"{name}.{kind} {ends} must be two {what}: the smallest and the largest")
    low, high = ends
    if low > high:
        raise UsageError(f"{name}.{kind} {ends} is empty: the smallest comes first")
    log = kind.startswith("log")
    if log and low <= 0:
        raise UsageError(f"{name}.{kind} {ends} must be above 0, because ratios are searched")
    values: Kind = "int" if KINDS[kind] == "int" else "float"
    return Dimension(key, values, float(low), float(high), log)


def _part(value: Any, name: str) -> Part | None:
    """A class of Optuna; None for null."""
    if value is None:
        return None
    if isinstance(value, str):
        value = {"class_path": value}
    spec = _mapping(value, name)
    path, arguments = spec.get("class_path"), spec.get("init_args") or {}
    if spec.keys() - {"class_path", "init_args"} or not isinstance(path, str):
        raise UsageError(f"{name} must have a class_path, and may have init_args")
    room = f"optuna.{name.removeprefix('sweep.')}s"
    path = path if "." in path else f"{room}.{path}"
    if path.rpartition(".")[0] != room:
        raise UsageError(f"{name} {path} is not a class of {room}")
    if (kind := path.rpartition(".")[2]) in EXHAUSTIVE:
        raise UsageError(
            f"{name} {kind} tries every combination, which makemoe compare --vary does; omit it "
            "for TPESampler"
        )
    return Part(path, _mapping(arguments, f"{name}.init_args"))


def written(value: Any) -> str:
    """A value of YAML as the command line has it."""
    try:
        is_plain = isinstance(value, str) and yaml.safe_load(value) == value
    except yaml.YAMLError:  # such as *.txt: fit takes it as it is
        is_plain = True
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def shown(sweep: Sweep, values: Mapping[str, Value]) -> dict[str, str]:
    """The values of a trial in few characters, by the short names of their options."""
    told = {}
    for dimension in sweep.space:
        if dimension.key not in values:
            continue
        value = values[dimension.key]
        if dimension.kind == "choice":
            labels = dict(zip(dimension.choices, short_values(dimension.choices), strict=True))
            text = labels.get(str(value), str(value))
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
        told[sweep.short()[dimension.key]] = text
    return told
