"""Writes a checkpoint as a folder for other programs."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from makemoe.checkpoint.format import Checkpoint
from makemoe.checkpoint.inference import rebuilt
from makemoe.data.tokenizer import Tokenizer
from makemoe.exchange.contents import Contents, check_target, write_folder
from makemoe.exchange.hugging_face import for_transformers
from makemoe.exchange.plain import plain
from makemoe.exchange.tensors import library
from makemoe.model.transformer import MoETransformer

FormatName = Literal["transformers", "safetensors"]

FORMATS: dict[FormatName, Callable[[Checkpoint, str, MoETransformer, Tokenizer, str], Contents]] = {
    "transformers": for_transformers,
    "safetensors": plain,
}


class Exported(NamedTuple):
    """What was written: what it is, and the bytes of its weights."""

    kind: str
    nbytes: int


def export(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    to: Path,
    form: FormatName = "transformers",
    trusted: Sequence[str] = (),
) -> Exported:
    """Write a checkpoint as a new folder, whole or not at all.

    Args:
        checkpoint: the checkpoint.
        path: where it was read, for messages.
        to: the new folder.
        form: `transformers`, or `safetensors` for plain weights of any model.
        trusted: modules, besides makemoe, whose classes the checkpoint may name.

    Raises:
        UsageError: if the folder exists, or a library is missing.
        CheckpointError: for a model that has no counterpart.
        WriteError: if the folder cannot be written.
    """
    check_target(to)
    library()
    model, tokenizer = rebuilt(checkpoint, path, trusted)
    contents = FORMATS[form](checkpoint, os.fspath(path), model, tokenizer, to.name)
    write_folder(contents, to)
    return Exported(contents.kind, sum(one.nbytes for one in contents.tensors.values()))
