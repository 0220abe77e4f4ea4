"""A jsonargparse parser that refuses every value that does not have the type of its option.

jsonargparse accepts null for anything in a config file, ignores a group that is not a mapping,
reads a string that happens to name a file, and lets some exceptions through. All values, from flags
and from files, of options and of the arguments of classes, pass through the same few methods, which
are made strict here.
"""

import argparse
import os
import re
import sys
from copy import deepcopy
from typing import Any

from jsonargparse import Namespace, dict_to_namespace
from jsonargparse._actions import ActionConfigFile, _ActionConfigLoad, _ActionHelpClassPath
from jsonargparse._common import parser_context
from jsonargparse._typehints import ActionTypeHint
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from makemoe.cli.checks import check_settings
from makemoe.cli.classes import check_fits, class_help, near_classes, words_of
from makemoe.cli.configs import config_file
from makemoe.cli.located import as_read
from makemoe.cli.parser import ShortHelp, got, shortened
from makemoe.cli.strict_yaml import check_plain, load_yaml, read_config, read_strictly
from makemoe.errors import MakeMoEError, UsageError

SPEC_KEYS = {"class_path", "init_args"}


class TrainingParser(ShortHelp, LightningArgumentParser):  # type: ignore[misc]
    """LightningCLI's parser with strict types, short help and errors of one line."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse; any exception of jsonargparse is reported as an error in the settings."""
        read_strictly()
        try:
            settings = super().parse_args(*args, **kwargs)
        except (MakeMoEError, BrokenPipeError):
            raise
        except Exception as error:
            reason = shortened(f"{type(error).__name__}: {error}")
            raise UsageError(f"the settings cannot be read: {reason}") from error
        if self._subcommands_action is not None:
            check_settings(settings[settings.subcommand])
        return settings

    def _parse_defaults_and_environ(self, *args: Any, **kwargs: Any) -> Namespace:
        """The defaults, without those of a class's arguments, which another class would inherit."""
        settings: Namespace = super()._parse_defaults_and_environ(*args, **kwargs)
        for action in self._actions:
            default = action.default
            if isinstance(default, dict | Namespace) and "class_path" in default:
                settings[action.dest] = dict_to_namespace(deepcopy(default))
        return settings

    def parse_path(self, path: Any, **kwargs: Any) -> Any:
        """Parse a config file after checking it."""
        return self.parse_string(as_read(read_config(str(path))), **kwargs)

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Any:
        """Build the classes in the settings; report why a class refuses its arguments."""
        try:
            return super().instantiate_classes(*args, **kwargs)
        except (ValueError, MisconfigurationException) as error:
            reason = first_cause(error)
            if isinstance(reason, MakeMoEError):
                raise reason from error
            if reason is error and not isinstance(error, MisconfigurationException):
                raise  # not raised by a class that the user named
            raise UsageError(f"the settings cannot be used: {shortened(str(reason))}") from error

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """Add them so that a string is never read as the name of a file of settings."""
        return super().add_class_arguments(*args, **kwargs | {"sub_configs": False})

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Accept no abbreviations: they may mean another option in a later version."""
        return []

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """The values of a flag."""
        values = super()._get_values(action, arg_strings)
        if isinstance(action, ActionConfigFile):
            values = config_file(values)
            read_config(values)
        elif isinstance(action, _ActionConfigLoad):
            values = settings_in(action.dest, values)
        elif isinstance(action, _ActionHelpClassPath):
            self._print_message(class_help(self, action, values), sys.stdout)
            self.exit()
        return values

    def _check_value_key(
        self,
        action: argparse.Action,
        value: Any,
        key: str,
        cfg: Namespace | None,
        append: bool = False,
    ) -> Any:
        """The value of an option, converted to its type."""
        checked = super()._check_value_key
        if self._subcommands_action is not None:
            return checked(action, value, key, cfg, append)  # the subcommand's parser checks it
        check_plain(value.as_dict() if isinstance(value, Namespace) else value, f"--{key}")
        check_spec(value, f"--{key}")
        if isinstance(action, ActionConfigFile) and not is_list_of(os.PathLike, value):
            raise UsageError(f"key {key} in a config file: repeat the flag --config instead")
        if isinstance(action, _ActionConfigLoad) and not isinstance(value, dict | Namespace):
            raise UsageError(f"--{key}: expected settings, such as {{name: value}} {got(value)}")
        if isinstance(action, argparse._AppendAction) and not is_list_of(str, value):
            raise UsageError(f"--{key}: expected a list of names {got(value)}")
        if isinstance(action, ActionTypeHint):
            typed: Any = action
            if is_nothing(value) and not typed.is_mapping_typehint(typed):
                raise UsageError(f"--{key}: expected a value (got {{}})")
            if value is None and action.default is not None:
                # jsonargparse treats null as a missing value.
                with parser_context(parent_parser=self):
                    typed._check_type_(None, cfg=cfg, append=append, mode=self.parser_mode)
        found = checked(action, value, key, cfg, append)
        if isinstance(action, ActionTypeHint):
            check_fits(typed._typehint, found, f"--{key}")
        return found

    def hint(self, key: str, message: str) -> str:
        """What to give to an option instead of the value that its type refuses."""
        if self._subcommands_action is not None:
            return next(
                filter(
                    None, (p.hint(key, message) for p in self._subcommands_action.choices.values())
                ),
                "",
            )
        options = self._option_string_actions
        helper = options.get(f"--{key}.help")
        given = LIST_EXPECTED.search(message)
        if f"--{key}+" in options and given and not LEAF.search(message):
            name = given.group(1) or "NAME"
            if helper is not None and not name.isidentifier() and "." not in name:
                name = "NAME"  # of a class
            return f"expected a list: --{key}+ {name} adds one, or in a file: [{name}]"
        if "is abstract" in message and helper is not None:
            return f"name a class before its arguments: --{key} NAME"
        named = CLASS_EXPECTED.search(message)
        if not named or not isinstance(helper, _ActionHelpClassPath) or LEAF.search(message):
            return ""
        name = named.group(1) or named.group(2)
        if words := words_of(helper._typehint):
            kind = helper._help_types[0].__name__
            return f"expected one of {', '.join(map(repr, words))} or a {kind} class {got(name)}"
        near = near_classes(name, helper)
        return f"unknown class {name}{near or '; give its module too'}"


LIST_EXPECTED = re.compile(
    r"Expected a <class '(?:list|collections\.abc\.Sequence)'>.*"
    r"(?:Got|Given) value: (?:Namespace\(class_path=')?(?!None)(\w[\w.]*)?",
    re.DOTALL,
)
CLASS_EXPECTED = re.compile(r"import path string: (\S+)|has no attribute '(\w+)'")
LEAF = re.compile(r"Expected a <class '(?:int|float|str)'>")


def first_cause(error: BaseException) -> BaseException:
    """The first exception in a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def settings_in(key: str, text: str) -> dict[str, Any]:
    """The mapping in a flag that sets a whole group."""
    try:
        value = load_yaml(text)
    except Exception:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"--{key}: expected settings, such as '{{name: value}}' {got(text)}")
    return value


def check_spec(value: Any, key: str) -> None:
    """Refuse a malformed class_path with init_args."""
    if isinstance(value, list):
        for item in value:
            check_spec(item, key)
    if isinstance(value, Namespace):
        value = vars(value)
    if not isinstance(value, dict) or "class_path" not in value:
        return
    if not isinstance(value["class_path"], str):
        raise UsageError(f"{key}.class_path: expected a class {got(value['class_path'])}")
    if not isinstance(value.get("init_args", {}), dict | Namespace):
        raise UsageError(f"{key}.init_args: expected {{name: value}} {got(value['init_args'])}")
    if unknown := sorted(value.keys() - SPEC_KEYS):
        raise UsageError(f"{key}: unknown key {unknown[0]} beside class_path and init_args")


def is_list_of(kind: type, value: Any) -> bool:
    """Whether a value is a list of this type."""
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def is_nothing(value: Any) -> bool:
    """Whether a value is an empty mapping."""
    mapping = vars(value) if isinstance(value, Namespace) else value
    return isinstance(mapping, dict) and not mapping
