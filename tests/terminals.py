"""A shell on a terminal of its own, in which keys are pressed."""

import os
import pty
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TELL = "\x18\x14"
"""Ctrl-X Ctrl-T: the shell writes its line to the file `line`."""
CLEAR = "\x15"  # Ctrl-U

BASH = """
PS1='> '
tell() { printf '%s' "$READLINE_LINE" > line.new && mv line.new line; }
bind -x '"\\C-x\\C-t": tell'
"""
ZSH = """
PS1='> '
autoload -Uz compinit && compinit -u -D
tell() { print -rn -- "$BUFFER" > line.new && mv line.new line }
zle -N tell && bindkey -e && bindkey '^X^T' tell
bindkey '^U' kill-whole-line
"""


class Terminal:
    """What a person at a shell does.

    Args:
        folder: the shell's working folder.
        keyboard: file descriptor that takes what is typed.
    """

    def __init__(self, folder: Path, keyboard: int) -> None:
        self.line, self.keyboard = folder / "line", keyboard

    def press(self, keys: str) -> str:
        """The command line after these keys, on an empty line."""
        self.line.unlink(missing_ok=True)
        os.write(self.keyboard, f"{CLEAR}{keys}{TELL}".encode())
        return read_when_there(self.line)


@contextmanager
def shell(name: str, folder: Path, script: Path) -> Iterator[Terminal]:
    """An interactive shell that has read a script; `bash` or `zsh`."""
    start = {"bash": BASH, "zsh": ZSH}[name] + f"source {script}\n: > ready\n"
    home = script.parent
    (home / ".zshrc").write_text(start)
    (home / ".bashrc").write_text(start)
    command = {"bash": ["bash", "--rcfile", home / ".bashrc", "-i"], "zsh": ["zsh", "-d", "-i"]}
    ours, its = pty.openpty()
    environment = {
        **{"PATH": os.environ["PATH"], "HOME": str(home), "ZDOTDIR": str(home)},
        **{"TERM": "dumb", "INPUTRC": "/dev/null", "LC_ALL": "C.UTF-8"},
    }
    running = subprocess.Popen(
        command[name],
        cwd=folder,
        env=environment,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    try:
        read_when_there(folder / "ready")
        yield Terminal(folder, ours)
    finally:
        running.kill()
        running.wait()
        os.close(ours)


def read_when_there(file: Path) -> str:
    """The content of a file that another process is about to write."""
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} was not written"
        time.sleep(0.01)
    return file.read_text()
