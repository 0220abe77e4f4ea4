"""Files of a case, made from plain data.

A file is one of:
    {"text": str}                             in UTF-8
    {"hex": str}                              as bytes
    {"repeat": str, "times": n}               a long text
    {"special": name}                         something else than a file: see SPECIAL
    {"checkpoint": run, "edits": [...]}       a run's last.ckpt with other content
    {"damaged": run, "ops": [...]}            a run's last.ckpt with other bytes

`fuzz.fields` makes the edits, `fuzz.damage` the operations.
"""

import os
import socket
from pathlib import Path
from typing import Any

from fuzz import damage, fields


def build(folder: Path, files: dict[str, Any]) -> None:
    """Put a case's files into its folder."""
    for name, spec in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "special" in spec:
            SPECIAL[spec["special"]](path)
        elif "checkpoint" in spec:
            fields.write(last(folder, spec["checkpoint"]), spec["edits"], path)
        elif "damaged" in spec:
            path.write_bytes(damage.damaged(last(folder, spec["damaged"]), spec["ops"]))
        else:
            path.write_bytes(content(spec))


def last(folder: Path, run: str) -> Path:
    """A prepared run's checkpoint."""
    return folder / "checkpoints" / run / "last.ckpt"


def content(spec: dict[str, Any]) -> bytes:
    """The bytes of a plain file."""
    if "hex" in spec:
        return bytes.fromhex(spec["hex"])
    text: str = spec["repeat"] * spec["times"] if "repeat" in spec else spec["text"]
    return text.encode("utf-8", "surrogateescape")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _unwritable(path: Path) -> None:
    path.mkdir(mode=0o555)


SPECIAL = {
    "fifo": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "full folder": lambda path: (path / "a" / "b").mkdir(parents=True),
    "read-only folder": _unwritable,
    "socket": _socket,
    "loop": _loop,
    "dangling": lambda path: path.symlink_to("nothing.here"),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "null": lambda path: path.symlink_to("/dev/null"),
    "full": lambda path: path.symlink_to("/dev/full"),
    "random": lambda path: path.symlink_to("/dev/urandom"),
    "stdin": lambda path: path.symlink_to("/dev/stdin"),
    "itself": lambda path: path.symlink_to("."),
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
    "unreadable": lambda path: (path.write_text("x"), path.chmod(0)),
    "sparse": lambda path: (path.touch(), os.truncate(path, 1 << 33)),
}
"""Ways to make what is not a plain file, by name."""
