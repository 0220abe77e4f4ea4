"""A checkpoint's file with other bytes: torn, flipped, repacked, or with a pickle that acts."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fuzz.hostile import MARKER, SHELL
from makemoe.checkpoint.seal import Sealing


class Act:
    """Unpickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _named(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls a function it names, in the oldest protocol."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


PICKLES: dict[str, Callable[[], bytes]] = {
    "system": lambda: _named("posix", "system", SHELL),
    "os.system": lambda: _named("os", "system", SHELL),
    "eval": lambda: _named("builtins", "eval", f"open('{MARKER}', 'w')"),
    "exec in py2": lambda: _named("__builtin__", "eval", f"open('{MARKER}', 'w')"),
    "open": lambda: pickle.dumps(Act(open, MARKER, "w"), 2),
    "import": lambda: _named("stranger", "Router", "x"),
    "torch.load": lambda: _named("torch", "load", "checkpoints/tiny/last.ckpt"),
    "rebuild": lambda: b"ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    "rebuild huge": lambda: b"ctorch\nempty\n(I1000000000000\ntR.",
    "bytearray": lambda: b"c__builtin__\nbytearray\n(I100000000000\ntR.",
    "bytearray 4 GB": lambda: b"cbuiltins\nbytearray\n(I4000000000\ntR.",
    "list of zeros": lambda: b"ccollections\nCounter\n(I4000000000\ntR.",
    "instance": lambda: b"(iposix\nsystem\n.",
    "stack": lambda: b"." * 10,
    "nothing": lambda: b"",
    "no stop": lambda: b"\x80\x02]",
    "marks": lambda: b"(" * 1_000_000 + b".",
    "nested": lambda: b"]" * 100_000 + b"a" * 99_999 + b".",
    "loop": lambda: b"]q\x00h\x00a.",
    "binget": lambda: b"h\xff.",
    "long": lambda: b"\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"1.",
    "negative long": lambda: b"\x8b" + struct.pack("<i", -1) + b".",
    "text length": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"a.",
    "frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b".",
    "memo": lambda: b"\x80\x02]r\xff\xff\xff\x7f.",
    "protocol 99": lambda: b"\x80\x63.",
    "persistent": lambda: b"Pstorage\n.",
    "decimal": lambda: b"I" + b"9" * 1_000_000 + b"\n.",
    "dict in dict": lambda: pickle.dumps({"makemoe": {"format": 1}, "state_dict": None}, 2),
}
"""Pickles that act, lie or never end, by name."""


def damaged(original: Path, ops: list[list[Any]]) -> bytes:
    """The file's bytes after some operations."""
    content = original.read_bytes()
    for name, *arguments in ops:
        content = OPERATIONS[name](content, *arguments)
    return content


def is_other(original: Path, path: Path) -> bool:
    """Whether a file holds other values than the original; also if it cannot be read at all."""
    try:
        one, other = (torch.load(p, weights_only=True, mmap=True) for p in (original, path))
    except Exception:
        return True
    return not _same(one, other)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, torch.Tensor):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return one.numpy().tobytes() == other.numpy().tobytes()  # by bits: NaN is itself
    return bool(one == other or (one != one and other != other))


def _flip(content: bytes, *bits: int) -> bytes:
    changed = bytearray(content)
    for bit in bits if content else ():
        changed[bit // 8 % len(content)] ^= 1 << bit % 8
    return bytes(changed)


def _truncate(content: bytes, keep: int) -> bytes:
    return content[: keep % (len(content) + 1)]


def _swap(content: bytes, a: int, b: int, size: int) -> bytes:
    a, b = sorted((a % (len(content) + 1), b % (len(content) + 1)))
    size = min(size, b - a, len(content) - b)
    first, second = content[a : a + size], content[b : b + size]
    return content[:a] + second + content[a + size : b] + first + content[b + size :]


def _overwrite(content: bytes, at: int, new: str) -> bytes:
    at %= len(content) + 1
    return content[:at] + bytes.fromhex(new) + content[at + len(new) // 2 :]


def _insert(content: bytes, at: int, new: str) -> bytes:
    at %= len(content) + 1
    return content[:at] + bytes.fromhex(new) + content[at:]


def _remove(content: bytes, at: int, size: int) -> bytes:
    at %= len(content) + 1
    return content[:at] + content[at + size :]


def repacked(
    content: bytes,
    change: Callable[[str, bytes], bytes | None],
    compression: int = zipfile.ZIP_STORED,
    added: dict[str, bytes] | None = None,
) -> bytes:
    """The archive with other entries; an entry that `change` gives None for is left out."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(result, "w", compression) as new,
    ):
        for name in old.namelist():
            kept = change(name, old.read(name))
            if kept is not None:
                new.writestr(name, kept)
        for name, extra in (added or {}).items():
            new.writestr(name, extra)
    return result.getvalue()


def _pickle(content: bytes, name: str) -> bytes:
    return repacked(content, lambda n, old: PICKLES[name]() if n.endswith("data.pkl") else old)


def _bomb(content: bytes, entry: str, mebibytes: int) -> bytes:
    large = bytes(mebibytes << 20)
    return repacked(
        content, lambda n, old: large if n.endswith(entry) else old, zipfile.ZIP_DEFLATED
    )


def _deflate(content: bytes) -> bytes:
    return repacked(content, lambda n, old: old, zipfile.ZIP_DEFLATED)


def _entry(content: bytes, suffix: str, new: str) -> bytes:
    return repacked(content, lambda n, old: bytes.fromhex(new) if n.endswith(suffix) else old)


def _without(content: bytes, suffix: str) -> bytes:
    return repacked(content, lambda n, old: None if n.endswith(suffix) else old)


def _renamed(content: bytes, old: str, new: str) -> bytes:
    return content.replace(old.encode(), new.encode())


def _more(content: bytes, name: str) -> bytes:
    return repacked(content, lambda n, old: old, added={name: b"x"})


def _edit_pickle(content: bytes, at: int, new: str) -> bytes:
    """Other bytes in the pickle, in an archive whose own checksums are right."""
    return repacked(
        content, lambda n, old: _overwrite(old, at, new) if n.endswith("data.pkl") else old
    )


def _legacy(content: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save(
        torch.load(io.BytesIO(content), weights_only=True),
        buffer,
        _use_new_zipfile_serialization=False,
    )
    return buffer.getvalue()


def _seal(content: bytes) -> bytes:
    """With a checksum that is right: an attacker can compute it, too."""
    buffer = io.BytesIO()
    sealing = Sealing(buffer)
    sealing.write(content)
    sealing.seal()
    return buffer.getvalue()


OPERATIONS: dict[str, Callable[..., bytes]] = {
    "flip": _flip,
    "truncate": _truncate,
    "append": lambda content, new: content + bytes.fromhex(new),
    "prepend": lambda content, new: bytes.fromhex(new) + content,
    "double": lambda content: content + content,
    "swap": _swap,
    "overwrite": _overwrite,
    "insert": _insert,
    "remove": _remove,
    "deflate": _deflate,
    "bomb": _bomb,
    "pickle": _pickle,
    "edit pickle": _edit_pickle,
    "entry": _entry,
    "without": _without,
    "rename": _renamed,
    "more": _more,
    "legacy": _legacy,
    "seal": _seal,
    "raw": lambda content, name: PICKLES[name](),
    "empty": lambda content: b"",
}
"""What can be done to the bytes, by name."""
