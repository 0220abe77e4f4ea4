"""The short help of fit, validate and test, read from source files.

Importing the classes that the options set takes seconds, because it imports torch and Lightning. So
their signatures and docstrings are parsed instead.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

from makemoe.cli.help import DESCRIPTIONS, SHOWN_HELP

WIDTH = 100
COLUMN = 36
"""Column in which the meaning of an option starts."""

LINKED = {"data.block_size", "data.seed", "model.seed", "model.vocab_size"}
"""Arguments that follow from other options and are not options themselves."""

WITHOUT_CLASS = {
    **{"config": "", "seed": "1337", "ckpt_path": "", "trust": "", "allow_changed": "false"},
    "help_all": "",
}
"""Options that do not set an argument of a class, and their defaults."""


class Option(NamedTuple):
    """An option's default as help shows it (empty for null), and its meaning."""

    default: str
    meaning: str


def short_help(command: str, shown: Mapping[str, str] | None = None) -> str:
    """The help of a command on one screen.

    Args:
        command: fit, validate or test.
        shown: prefixes of option names and their help text; an empty text means the option's own;
            by default those of SHOWN_HELP.
    """
    known = options()
    lines = [f"usage: makemoe {command} [OPTIONS]", "", DESCRIPTIONS[command], ""]
    shown = SHOWN_HELP[command] if shown is None else shown
    for beginning, text in {**shown, "help_all": "list every option"}.items():
        for name, option in known.items():
            if name.startswith(beginning):
                lines += in_columns(name, option.default, text or option.meaning)
    return "\n".join(lines) + "\n"


def in_columns(name: str, default: str, meaning: str) -> list[str]:
    """The help of an option as lines: name, default, meaning."""
    head, body = f"  --{name} {default}", wrap(meaning, WIDTH - COLUMN)
    if len(head) < COLUMN:
        return [f"{head:<{COLUMN}}{' '.join(body[:1])}".rstrip(), *indented(body[1:])]
    return [head, *indented(body)]


def indented(lines: list[str]) -> list[str]:
    """The lines, indented to the column of meanings."""
    return [" " * COLUMN + line for line in lines]


def options() -> dict[str, Option]:
    """All options, in the order of their classes' arguments."""
    package = Path(__file__).parents[1]
    lightning = find_spec("lightning")
    assert lightning is not None
    assert lightning.origin is not None
    trainer = Path(lightning.origin).parent / "pytorch" / "trainer" / "trainer.py"
    classes = [
        ("data", package / "data" / "datamodule.py", "TextDataModule"),
        ("model", package / "training" / "module.py", "LanguageModel"),
        ("model", package / "model" / "transformer.py", "MoETransformer"),
        ("trainer", trainer, "Trainer"),
        ("run", package / "run.py", "RunSettings"),
    ]
    found = {name: Option(default, "") for name, default in WITHOUT_CLASS.items()}
    for group, file, name in classes:
        for argument, option in arguments_of(file, name):
            found[f"{group}.{argument}"] = option
    for name, value in own_trainer_defaults(package / "cli" / "training.py").items():
        found[f"trainer.{name}"] = found[f"trainer.{name}"]._replace(default=as_shown(value))
    return {name: option for name, option in found.items() if name not in LINKED}


def arguments_of(file: Path, name: str) -> Iterator[tuple[str, Option]]:
    """Yield the arguments of a class in a source file, without importing it."""
    [definition] = (
        node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    meanings = argument_meanings(ast.get_docstring(definition, clean=False) or "")
    for argument, default in signature(definition):
        yield argument, Option(default_shown(default), meanings.get(argument, ""))


def signature(definition: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield arguments and defaults of a class: of its __init__, or a dataclass's fields."""
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            positional = node.args.args[1:]
            missing = [None] * (len(positional) - len(node.args.defaults))
            pairs = [
                *zip(positional, [*missing, *node.args.defaults], strict=True),
                *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
            ]
            yield from ((argument.arg, default) for argument, default in pairs)
            return
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.value


def argument_meanings(docstring: str) -> dict[str, str]:
    """The section `Args:` of a docstring, by argument."""
    _, _, section = cleandoc(docstring).partition("Args:\n")
    section = re.split(r"\n\n?(?=\S)", section)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def own_trainer_defaults(file: Path) -> dict[str, Any]:
    """The value of TRAINER_DEFAULTS in a source file."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TRAINER_DEFAULTS":
            defaults: dict[str, Any] = ast.literal_eval(node.value)
            return defaults
    raise AssertionError(f"no TRAINER_DEFAULTS in {file}")


def default_shown(node: ast.expr | None) -> str:
    """A default as help shows it; a class, or what a function calls, is shown by its name."""
    if node is None:
        return ""
    if isinstance(node, ast.Lambda):
        node = node.body
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Name | ast.Attribute):
        return ast.unparse(node).rpartition(".")[2]
    return as_shown(ast.literal_eval(node))


def as_shown(value: object) -> str:
    """A plain default as help shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if value == "\n" else str(value)
