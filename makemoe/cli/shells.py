"""Scripts that complete a command line, one function per shell.

A script holds every word it offers; only names of files and runs are looked up when it is asked. So
it answers at once, where makemoe itself would first have to import torch.
"""

import re
from collections.abc import Sequence
from textwrap import indent, shorten
from typing import NamedTuple

LONGEST_MEANING = 80
RUNS = "checkpoints"
"""The folder whose runs are offered."""


class Values(NamedTuple):
    """What an option takes.

    Attributes:
        words: these; those that end with `=` are beginnings.
        files: and files with such names; `/`: folders only; empty: no files.
        runs: and the names of runs.
    """

    words: tuple[str, ...] = ()
    files: str = ""
    runs: bool = False


class Option(NamedTuple):
    """An option.

    Attributes:
        name: with its dashes.
        meaning: any text.
        takes: its values; None: it stands alone.
    """

    name: str
    meaning: str
    takes: Values | None


class Command(NamedTuple):
    """A command.

    Attributes:
        name: its name.
        meaning: any text.
        options: its options.
        words: what it takes beside options.
    """

    name: str
    meaning: str
    options: Sequence[Option]
    words: tuple[str, ...] = ()


def bash(commands: Sequence[Command]) -> str:
    """The script for bash."""
    cases = "\n".join(
        f"{command.name})\n{indent(_bash_options(command), '    ')}\n    ;;" for command in commands
    )
    return (
        BASH.replace("@COMMANDS", " ".join(command.name for command in commands))
        .replace("@RUNS", RUNS)
        .replace("@CASES", indent(cases, "            "))
    )


def _bash_options(command: Command) -> str:
    """The cases of a command: the word before decides what comes."""
    cases = [
        f"{'|'.join(names)}) {_bash_values(values)};;"
        for values, names in _by_values(command.options).items()
    ]
    words = " ".join([*command.words, *(option.name for option in command.options)])
    return "\n".join(["case $option in", *cases, f"*) words='{words}' ;;", "esac"])


def _bash_values(values: Values) -> str:
    """What a case sets."""
    words = [*values.words, *(["$(_makemoe_runs)"] if values.runs else [])]
    parts = [
        f'words="{" ".join(words)}"' if words else "",
        f"files='{values.files}'" if values.files else "",
    ]
    return " ".join(filter(None, [*parts, "" if any(parts) else "return"])) + " "


def zsh(commands: Sequence[Command]) -> str:
    """The script for zsh."""
    named = [f"{command.name}:{_short(command.meaning)}" for command in commands]
    cases = "\n".join(
        f"({command.name})\n{indent(_zsh_options(command), '    ')}\n    ;;" for command in commands
    )
    return ZSH.replace(
        "@COMMANDS", "\n".join(f"            {_quoted(one)}" for one in named)
    ).replace("@CASES", indent(cases, "        "))


def _zsh_options(command: Command) -> str:
    """The cases of a command: the word before decides what comes."""
    cases = [
        f"({'|'.join(names)}) {_zsh_values(values)} ;;"
        for values, names in _by_values(command.options).items()
    ]
    options = [
        f"        {_quoted(option.name.replace(':', chr(92) + ':') + ':' + _short(option.meaning))}"
        for option in command.options
    ]
    words = [f"    compadd -- {' '.join(command.words)}"] if command.words else []
    rest = [
        "(*)",
        *words,
        "    found=(",
        *options,
        "    )",
        "    _describe -o option found",
        "    ;;",
    ]
    return "\n".join(["case $option in", *cases, *rest, "esac"])


def _zsh_values(values: Values) -> str:
    """The commands that offer them."""
    begins = "-S '' " if any(word.endswith("=") for word in values.words) else ""
    parts = [f"compadd {begins}-- {' '.join(values.words)}"] if values.words else []
    if values.runs:
        parts.append(f"compadd -- {RUNS}/*(/N:t)")
    if values.files == "/":
        parts.append("_files -/")
    elif values.files:
        parts.append("_files" if values.files == "*" else f"_files -g '{values.files}'")
    return "; ".join(parts or ["_message value"])


def fish(commands: Sequence[Command]) -> str:
    """The script for fish."""
    lines = [
        f"complete -c makemoe -n __makemoe_begins -a {command.name} -d {_fished(command.meaning)}"
        for command in commands
    ]
    lines += [
        f"complete -c makemoe -n '__makemoe_is {command.name}' -a '{' '.join(command.words)}'"
        for command in commands
        if command.words
    ]
    having: dict[Option, list[str]] = {}
    for command in commands:
        for option in command.options:
            having.setdefault(option, []).append(command.name)
    for option, names in having.items():
        flag = "l" if option.name.startswith("--") else "s"
        takes = "" if option.takes is None else f" {_fish_values(option.takes)}"
        lines.append(
            f"complete -c makemoe -n '__makemoe_is {' '.join(names)}' "
            f"-{flag} '{option.name.lstrip('-')}'{takes} -d {_fished(option.meaning)}"
        )
    return FISH.replace("@RUNS", RUNS).replace("@LINES", "\n".join(lines))


def _fish_values(values: Values) -> str:
    """The flags that offer them."""
    words = [*values.words]
    if values.runs:
        words.append("(__makemoe_runs)")
    if values.files == "/":
        words.append("(__fish_complete_directories)")
    elif values.files not in ("", "*"):
        words.append(f"(__makemoe_files {values.files.removeprefix('*.')})")
    all_files = "-rF" if values.files == "*" else "-x"
    return all_files + (f" -a '{' '.join(words)}'" if words else "")


def _by_values(options: Sequence[Option]) -> dict[Values, list[str]]:
    """The names of the options that take something, by what they take."""
    found: dict[Values, list[str]] = {}
    for option in options:
        if option.takes is not None:
            found.setdefault(option.takes, []).append(option.name)
    return found


def _short(text: str) -> str:
    """The beginning of a text in one line; its first sentence, if that is short."""
    line = " ".join(text.split())
    return shorten(re.split(r"(?<=\w)\. ", line)[0], LONGEST_MEANING, placeholder=" ...")


def _quoted(text: str) -> str:
    """A text as one word of sh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _fished(text: str) -> str:
    """The beginning of a text as one word of fish."""
    return "'" + _short(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


BASH = """\
_makemoe_runs() {
    local found
    for found in @RUNS/*/; do
        found=${found%/}
        [[ -d $found ]] && printf '%s ' "${found##*/}"
    done
}

_makemoe() {
    local word=${COMP_WORDS[COMP_CWORD]} option=${COMP_WORDS[COMP_CWORD - 1]}
    local head= words= files= found
    COMPREPLY=()
    # Usually, = is a word by itself.
    if [[ $word == = ]]; then
        word=
    elif [[ $option == = ]]; then
        option=${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $word == --*=* ]]; then
        option=${word%%=*} head=${word%%=*}= word=${word#*=}
    fi
    if ((COMP_CWORD == 1)); then
        words='@COMMANDS --help --version'
    else
        case ${COMP_WORDS[1]} in
@CASES
            *) return ;;
        esac
    fi
    while IFS= read -r found; do
        COMPREPLY+=("$head$found")
    done < <(compgen -W "$words" -- "$word")
    if [[ -n $files ]]; then
        while IFS= read -r found; do
            if [[ -d $found ]]; then
                COMPREPLY+=("$head$(printf %q "$found")/")
            elif [[ $files != / && $found == $files ]]; then
                COMPREPLY+=("$head$(printf %q "$found")")
            fi
        done < <(compgen -f -- "$word")
    fi
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[/=] ]] && type compopt &>/dev/null; then
        compopt -o nospace
    fi
}

complete -F _makemoe makemoe
"""

ZSH = """\
_makemoe() {
    local option
    local -a found
    if (( CURRENT == 2 )); then
        found=(
@COMMANDS
            '--help:list all commands'
            '--version:print the version'
        )
        _describe command found
        return
    fi
    option=$words[CURRENT-1]
    if [[ $PREFIX == --*=* ]]; then
        option=${PREFIX%%=*}
        compset -P 1 '*='
    fi
    case $words[2] in
@CASES
    esac
}

if [[ $funcstack[1] == _makemoe ]]; then
    _makemoe "$@"
else
    compdef _makemoe makemoe
fi
"""

FISH = """\
function __makemoe_begins
    test (count (commandline -opc)) -eq 1
end

function __makemoe_is
    set -l before (commandline -opc)
    test (count $before) -gt 1; and contains -- $before[2] $argv
end

function __makemoe_runs
    for found in @RUNS/*/
        basename $found
    end
end

# fish's own __fish_complete_suffix offers other files, too.
function __makemoe_files
    set -l word (string replace -r '^--[^=]*=' '' -- (commandline -ct))
    __fish_complete_path $word | string match -re '(/|[.]'$argv[1]')(\\t|$)'
end

complete -c makemoe -f
complete -c makemoe -n __makemoe_begins -l help -d 'list all commands'
complete -c makemoe -n __makemoe_begins -l version -d 'print the version'
@LINES
"""
