from pathlib import Path

import pytest
import yaml

from makemoe.cli.strict_yaml import MOST_BYTES, MOST_DEPTH, MOST_VALUES, load_yaml
from makemoe.errors import UsageError

BOMB = "".join(
    f"{name}: &{name} [{', '.join(['*' + inner] * 10)}]\n"
    for inner, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "nested": ("[" * 2000 + "]" * 2000, ["nested", "50"]),
    "nested and not ended": ("[" * 2000, ["nested", "50"]),
    "nested blocks": ("- " * 2000 + "1", ["nested", "50"]),
    "nested by aliases": (
        "a0: &a0 1\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}]\n" for n in range(60)),
        ["nested", "50", "line 51"],
    ),
    "list within itself": ("a: &a [1, *a]", ["*a", "line 1", "itself"]),
    "mapping within itself": ("x: 1\na: &a\n  b: {c: *a}", ["*a", "line 3", "itself"]),
    "bomb": (f"a: &a [{', '.join('1' * 10)}]\n{BOMB}", ["10000 values", "line 4"]),
    "long": (f"[{'1,' * MOST_VALUES}]", ["10000 values"]),
    "key given twice": ("a: 1\nb: 2\n'a': 3", ["key a ", "twice", "1 and 3"]),
    "inner key given twice": ("a:\n  b: 1\n  c: {b: 1, b: 2}", ["key b ", "twice", "line 3"]),
    "merge given twice": ("a: &a {b: 1}\nc: {<<: *a, <<: *a}", ["<<", "twice"]),
    "number as key": ("a: {1: 2}", ["key 1 ", "string"]),
    "truth as key": ("true: 2", ["key True ", "string"]),
    "nothing as key": ("~: 2", ["key None ", "string"]),
    "list as key": ("? [a]\n: 2", ["key", "line 1", "string"]),
    "alias as key": ("a: &a b\n*a : 2", ["key", "line 2", "string"]),
    "jsonargparse's key": ("a: 1\n__path__: x", ["__path__", "line 2"]),
    "tag for Python": ("a: !!python/object/apply:os.system [ls]", ["!!python", "line 1"]),
    "tag": ("a: !!int 3", ["!!int", "line 1"]),
    "large": (f"a: {'b' * MOST_BYTES}", ["1 MiB"]),
    "digits": (f"a: {'9' * 5000}", ["number"]),
    "hexadecimal digits": (f"a: 0x{'f' * 6000}", ["a: ", "2**63"]),
    "no digits": ("a: 0x_", ["number"]),
    "infinity": ("a: [{b: .inf}]", ["a.b: inf", "finite"]),
    "no number": ("a: .nan", ["a: nan", "finite"]),
    "NUL": ('a: "b\\0"', ["a: ", "NUL"]),
    "bare NUL": ("a: b\0", ["NUL"]),
    "surrogate": ("a: \udc80", ["Unicode"]),
}
LOADED = {
    "1e-3": 1e-3,
    "2001-99-99": "2001-99-99",
    "{a: [1, 2.5, true, null, x]}": {"a": [1, 2.5, True, None, "x"]},
    "a: &a {b: 1}\nc: {<<: *a, d: 2}": {"a": {"b": 1}, "c": {"b": 1, "d": 2}},
    "a: &x [1]\nb: *x": {"a": [1], "b": [1]},
    "ROMEO:": "ROMEO:",
    "[" * MOST_DEPTH + "]" * MOST_DEPTH: None,
}


@pytest.mark.parametrize("case", REFUSED)
def test_more_than_plain_values_is_refused(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(UsageError) as refused:
        load_yaml(text)
    for word in words:
        assert word in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("text", LOADED)
def test_plain_values_are_read(text: str) -> None:
    value = load_yaml(text)
    assert LOADED[text] is None or value == LOADED[text]


@pytest.mark.parametrize("text", ["a: [", "a: *b", "a: 1\n---\nb: 2", "\t", "a: b: c"])
def test_what_is_no_yaml_is_told_as_such(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=str)
def test_our_configs_are_read_as_any_loader_would(path: Path) -> None:
    text = path.read_text()
    assert load_yaml(text) == yaml.safe_load(text)
