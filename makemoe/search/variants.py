"""What `--vary` asks for: every combination of the values, each with a name and a folder."""

import hashlib
import re
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import yaml

from makemoe.errors import UsageError

NAMES_MOST = 100
"""Longest folder name of a variant."""

CLASS = re.compile(r"(?:\w+\.)+([A-Z]\w*)")
"""A class with its module."""

TAKEN = {
    "seed": "give --seeds N, and --seed for the first one",
    "ckpt_path": "every variant is trained from scratch",
    "run.name": "every run has a folder of its own; give --run.name to the comparison",
    "run.root": "every run has a folder of its own; give --run.root to the comparison",
    "trainer.max_steps": "compare trains every variant for equal tokens, or --equal flops",
    "trust": "give --trust MODULE",
}
"""Options that cannot be varied, and what to do instead."""


class Vary(NamedTuple):
    """A varied option, and its values as the command line would have them."""

    key: str
    values: tuple[str, ...]


class Choice(NamedTuple):
    """One combination of values.

    Attributes:
        name: as the table shows it; empty if nothing is varied.
        values: the value of each varied option.
    """

    name: str
    values: tuple[tuple[str, str], ...]


def read_vary(text: str) -> Vary:
    """Read `KEY=VALUE,VALUE,...`; the values are those of a list in YAML, unread.

    Raises:
        UsageError: for a text that is not of this form, or an option that cannot be varied.
    """
    key, is_given, values = text.partition("=")
    key = key.strip().removeprefix("--")
    if not (key and is_given):
        raise UsageError(f"--vary {text}: expected KEY=VALUE,VALUE,...")
    if key in TAKEN:
        raise UsageError(f"--vary {key}: {TAKEN[key]}")
    found = split(values)
    if found is None:
        raise UsageError(
            f"--vary {text}: the values are not a list such as 4,8 or [0,1],[2]; put a value with "
            "commas, brackets or quotes of its own in quotes"
        )
    for value in found:
        if found.count(value) > 1:
            raise UsageError(f"--vary {key}: the value {value} is given twice")
    return Vary(key, tuple(found))


def split(values: str) -> list[str] | None:
    """The texts of the items of a YAML list without its brackets; None if it is not one.

    YAML's scanner finds where they begin and end. What they mean is left to the command line, which
    reads each by itself; an item that is something else by itself, as `-`, is refused. Quotes that
    only the list needs are removed, because the command line would take them for a part of a text.
    """
    text = f"[{values}]"
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.SequenceNode) or values.rstrip().endswith(","):
            return None
        marks = [(item.start_mark, item.end_mark) for item in node.value]
        items = [text[begin.index : end.index].strip() for begin, end in marks]
        alone = [yaml.compose(item, Loader=yaml.SafeLoader) for item in items]
        agree = [written(one) for one in alone] == [written(one) for one in node.value]
    except yaml.YAMLError:
        return None
    return [*map(without_quotes, items)] if items and all(items) and agree else None


def without_quotes(item: str) -> str:
    """A text without its quotes, if it means the same without them."""
    node = yaml.compose(item, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.ScalarNode):
        return item
    try:
        plain = yaml.compose(node.value, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return item
    same = isinstance(plain, yaml.ScalarNode) and (plain.tag, plain.value) == (node.tag, node.value)
    return str(node.value) if same else item


def written(node: yaml.Node | None) -> str:
    """A value with its tags, however it was laid out."""
    return "" if node is None else str(yaml.serialize(node, canonical=True))


def combinations(varied: Sequence[Vary]) -> list[Choice]:
    """Every combination of the values; the last option varies fastest. Names are distinct.

    Raises:
        UsageError: if an option is varied twice.
    """
    keys = [vary.key for vary in varied]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"--vary {key} is given twice: give all its values at once")
    labels = [dict(zip(vary.values, short_values(vary.values), strict=True)) for vary in varied]
    heads = short_keys(keys)
    choices = []
    for values in product(*(vary.values for vary in varied)):
        words = [
            f"{head}={label[value]}"
            for head, label, value in zip(heads, labels, values, strict=True)
        ]
        choices.append(Choice(", ".join(words), tuple(zip(keys, values, strict=True))))
    return choices


def short_keys(keys: Sequence[str]) -> list[str]:
    """The last parts of options, as many as tell them apart."""
    parts = [[p for p in key.split(".") if p not in ("init_args", "class_path")] for key in keys]
    for count in range(1, 1 + max((len(part) for part in parts), default=1)):
        short = [".".join(part[-count:]) for part in parts]
        if len(set(short)) == len(short):
            return short
    return list(keys)


def short_values(values: Sequence[str]) -> list[str]:
    """Values without the modules of classes and the folders of files, if they stay distinct."""
    short = [shortened(composed(value)) or value for value in values]
    return short if len(set(short)) == len(short) else list(values)


def composed(value: str) -> yaml.Node | None:
    """A value as YAML reads it; None for what is no YAML, such as *.txt."""
    try:
        node: yaml.Node | None = yaml.compose(value, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    return node


def shortened(node: yaml.Node | None) -> str:
    """A value in few words: a class with arguments as `Class(argument=value)`."""
    if isinstance(node, yaml.ScalarNode):
        named = CLASS.fullmatch(node.value)
        return named.group(1) if named else node.value.rpartition("/")[2]
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(map(shortened, node.value))}]"
    if not isinstance(node, yaml.MappingNode):
        return ""
    items = {shortened(key): value for key, value in node.value}
    if "class_path" not in items:
        return f"{{{joined(node, ': ')}}}"
    arguments = joined(items.get("init_args"), "=")
    return shortened(items["class_path"]) + (f"({arguments})" if arguments else "")


def joined(node: yaml.Node | None, sign: str) -> str:
    """The keys and values of a mapping; empty for anything else."""
    if not isinstance(node, yaml.MappingNode):
        return ""
    return ", ".join(f"{shortened(key)}{sign}{shortened(value)}" for key, value in node.value)


def folder_name(name: str) -> str:
    """A folder's name for a variant; distinct names have distinct folders.

    It needs no quotes in a shell. A name that had to be changed ends with a part of its hash.
    """
    plain = name.replace(", ", ",")
    safe = re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", plain).lstrip(".-")[:NAMES_MOST]
    if safe == plain:
        return safe
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("-")


def words_of(choice: Choice, words: Sequence[str]) -> list[str]:
    """The command line of a combination: the user's words, and then the varied options.

    A varied config file comes after the user's own, so that the user's options still override it.
    """
    configs = [f"--config={value}" for key, value in choice.values if key == "config"]
    others = [f"--{key}={value}" for key, value in choice.values if key != "config"]
    at = 0
    for place, word in enumerate(words):
        if word in ("-c", "--config"):
            at = place + 2
        elif word.startswith("--config="):
            at = place + 1
    return [*words[:at], *configs, *words[at:], *others]
