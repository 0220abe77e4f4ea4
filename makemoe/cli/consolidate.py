"""`makemoe consolidate`: one file of a checkpoint in pieces."""

import argparse

from makemoe.checkpoint.consolidate import consolidate as write_one
from makemoe.checkpoint.format import read
from makemoe.cli.exchange import check_new, named, tell_written
from makemoe.run import RunSettings, find_checkpoint, tell_checkpoint
from makemoe.sizes import in_bytes


def consolidate(options: argparse.Namespace) -> int:
    """Write a checkpoint in pieces as one file; return the exit status.

    Args:
        options: those of `consolidate_options`.
    """
    to = named("--to", options.to)
    path = find_checkpoint(options.ckpt_path, RunSettings(root=options.root))
    checkpoint = read(path)
    check_new(to)
    write_one(checkpoint, path, to)
    tell_checkpoint(path, checkpoint.get("global_step"))
    tell_written(to, f"one file, {in_bytes(to.stat().st_size)}")
    return 0
