"""What `validate`, `test` and `inspect` print about a text: its loss, or why it cannot be read."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from makemoe.checkpoint.format import read
from makemoe.data.corpus import NAMES
from makemoe.data.tokenizer import Tokenizer, UnknownCharacter
from makemoe.data.windows import EvaluatedText
from makemoe.errors import DataError
from makemoe.training.losses import bits_per_byte, bits_per_character


def loss_line(name: str, nats: float, text: EvaluatedText, tokenizer: Tokenizer) -> str:
    """One line with the loss per token, per character and per byte, and the name of the text."""
    of_characters = bits_per_character(nats, text.ids, tokenizer)
    of_bytes = bits_per_byte(nats, text.ids, tokenizer)
    return (
        f"{name} {nats:.4f} nats per token, {of_characters:.4f} bits per character, "
        f"{of_bytes:.4f} bits per byte on {text.name}"
    )


@contextmanager
def blaming_checkpoint(
    path: Callable[[], str | None], named: Callable[[str], Any]
) -> Iterator[None]:
    """Improve the error about a text that the checkpoint names: add the checkpoint and the folder.

    Args:
        path: returns the path of the checkpoint, or None; called after an error.
        named: returns the text that an option names; called with the option's name.
    """
    try:
        yield
    except DataError as error:
        checkpoint = path()
        # The error about an unknown character already says how to fix it.
        if checkpoint is None or isinstance(error, UnknownCharacter):
            raise
        held = read(checkpoint).get("datamodule_hyper_parameters", {})
        for name in ("corpus", "test_corpus"):
            corpus, option = held.get(name), f"--data.{name}"
            begins = f"{option} {corpus!r}: "
            if named(f"data.{name}") == corpus and str(error).startswith(begins):
                problem = str(error).removeprefix(begins)
                raise not_had(option, corpus, checkpoint, problem) from error
        raise


def not_had(option: str, corpus: str, path: str, problem: str) -> DataError:
    """The error about a text that a checkpoint names and that cannot be read."""
    is_relative = corpus not in NAMES and not os.path.isabs(os.path.expanduser(corpus))
    where = f" and searched in {os.getcwd()}" if is_relative else ""
    return DataError(
        f"{option} {corpus!r}, named by the checkpoint {path}{where}: {problem.partition(';')[0]}; "
        f"pass another text with {option} FILE"
    )
