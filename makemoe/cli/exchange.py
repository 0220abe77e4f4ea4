"""`makemoe export` and `makemoe import`: models for other programs, and models from them."""

import argparse
import shlex
import sys
from pathlib import Path

from makemoe.checkpoint.format import read, write
from makemoe.errors import UsageError
from makemoe.exchange.export import export as export_to
from makemoe.exchange.take import take
from makemoe.files import remove_partial
from makemoe.run import RunSettings, find_checkpoint, tell_checkpoint
from makemoe.sizes import in_bytes


def export(options: argparse.Namespace) -> int:
    """Write a checkpoint as a folder; return the exit status.

    Args:
        options: those of `export_options`.
    """
    to = named("--to", options.to)
    path = find_checkpoint(options.ckpt_path, RunSettings(root=options.root))
    checkpoint = read(path)
    written = export_to(checkpoint, path, to, options.format, options.trust)
    tell_checkpoint(path, checkpoint.get("global_step"))
    tell_written(to, f"{written.kind}, {in_bytes(written.nbytes)} of weights")
    return 0


def take_in(options: argparse.Namespace) -> int:
    """Read a folder as a checkpoint; return the exit status.

    Args:
        options: those of `import_options`.
    """
    folder = named("--from", options.folder)
    given = options.to or f"{folder.resolve().name or 'imported'}.ckpt"
    to = named("--to", given)
    check_new(to)
    taken = take(folder, options.block_size, options.trust)
    write(taken.checkpoint, to)
    for note in taken.notes:
        print(f"makemoe: {note}", file=sys.stderr)
    tell_written(to, f"{taken.kind}; sample: makemoe predict --ckpt_path {shlex.quote(str(to))}")
    return 0


def tell_written(path: Path, what: str) -> None:
    """Print on standard error what was written: the file is the command's output."""
    print(f"makemoe: wrote {path}: {what}", file=sys.stderr)


def named(option: str, path: str) -> Path:
    """The path that an option names."""
    if "\0" in path:
        raise UsageError(f"{option} {path!r} contains a NUL character, which file names cannot")
    return Path(path)


def check_new(file: Path) -> None:
    """Raise UsageError if a new file cannot be there; remove what a killed command left of it."""
    if file.exists() or file.is_symlink():
        raise UsageError(f"--to {file} already exists: choose another file")
    if not file.parent.is_dir():
        raise UsageError(f"--to {file}: there is no folder {file.parent}; create it first")
    remove_partial(file.parent, of=file.name)
