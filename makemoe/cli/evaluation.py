"""What `validate`, `test` and `inspect` say of a text: its loss, or that it cannot be had."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from makemoe.checkpoint.format import read
from makemoe.data.corpus import NAMES
from makemoe.data.tokenizer import Tokenizer, UnknownCharacter
from makemoe.data.windows import EvaluatedText
from makemoe.errors import DataError
from makemoe.training.losses import bits_per_character


def loss_line(name: str, nats: float, text: EvaluatedText, tokenizer: Tokenizer) -> str:
    """A loss per token and per character, and of which text."""
    bits = bits_per_character(nats, text.ids, tokenizer)
    return f"{name} {nats:.4f} nats per token, {bits:.4f} bits per character on {text.name}"


@contextmanager
def blaming_checkpoint(
    path: Callable[[], str | None], named: Callable[[str], Any]
) -> Iterator[None]:
    """Let the error about a text that the checkpoint names say so, and where it was looked for.

    Args:
        path: asked after an error: the checkpoint, if there is one.
        named: which text an option stands for, by the option's name.
    """
    try:
        yield
    except DataError as error:
        checkpoint = path()
        # An unknown character comes with its own mend.
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
    """The error about a text that a checkpoint names."""
    is_relative = corpus not in NAMES and not os.path.isabs(os.path.expanduser(corpus))
    where = f" and looked for in {os.getcwd()}" if is_relative else ""
    return DataError(
        f"{option} {corpus!r}, named by the checkpoint {path}{where}: {problem.partition(';')[0]}; "
        f"pass another text with {option} FILE"
    )
