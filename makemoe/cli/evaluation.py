"""The text that `validate`, `test` and `inspect` evaluate: its loss, or why it cannot be read."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from makemoe.checkpoint.format import Checkpoint, read
from makemoe.checkpoint.held import Reader
from makemoe.data.corpus import NAMES
from makemoe.data.documents import TEXT_KEY
from makemoe.data.split import SEED_END
from makemoe.data.tokenizer import Tokenizer, UnknownCharacter
from makemoe.data.unknown import Unknown, known_text
from makemoe.data.windows import EvaluatedText
from makemoe.errors import CheckpointError, DataError
from makemoe.training.losses import bits_per_byte, bits_per_character


def loss_line(name: str, nats: float, text: EvaluatedText, tokenizer: Tokenizer) -> str:
    """One line with the loss per token, per character and per byte, and the name of the text."""
    of_characters = bits_per_character(nats, text.ids, tokenizer)
    of_bytes = bits_per_byte(nats, text.ids, tokenizer)
    return (
        f"{name} {nats:.4f} nats per token, {of_characters:.4f} bits per character, "
        f"{of_bytes:.4f} bits per byte on {text.name}"
    )


def corpus_of(path: str, checkpoint: Checkpoint, named: str | None) -> str:
    """Return the text given by the user, or the one the model was trained on."""
    held = checkpoint.get("datamodule_hyper_parameters", {}).get("corpus")
    corpus = named if named is not None else held
    if not isinstance(corpus, str):
        raise names_no_text(path)
    return corpus


def names_no_text(path: str) -> CheckpointError:
    """The error about a checkpoint that does not say what its model was trained on."""
    return CheckpointError(f"{path} does not name its training text: pass --data.corpus FILE")


def reading_of(path: str, checkpoint: Checkpoint, text_key: str | None) -> tuple[str, int]:
    """Return how the training text was read: the key of the text, unless given, and the split."""
    held = checkpoint.get("datamodule_hyper_parameters", {})
    reader = Reader(path)
    key = held.get("text_key", TEXT_KEY) if text_key is None else text_key
    seed = reader.value(held.get("split_seed", 0), int, "data.split_seed")
    if not 0 <= seed < SEED_END:
        raise CheckpointError(f"{path} is damaged or forged: its data.split_seed is {seed}")
    return str(reader.value(key, str, "data.text_key")), seed


def validation_text(
    corpus: str,
    tokenizer: Tokenizer,
    unknown: Unknown = "error",
    text_key: str = TEXT_KEY,
    split_seed: int = 0,
) -> EvaluatedText:
    """Return the validation split of a corpus, which `makemoe validate` evaluates too."""
    text = known_text(corpus, tokenizer, "--data.corpus", unknown, text_key, split_seed)
    held_out = text.validation_split()
    if len(held_out.ids) < 2:
        raise DataError(
            f"--data.corpus {corpus!r} has {len(text.ids)} tokens, too few for validation: pass "
            "a longer text"
        )
    return held_out


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
