"""What must stay as it is for a resumed run to be the same run: what decides its batches."""

from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import Namespace

from makemoe.checkpoint.format import KEY, Checkpoint
from makemoe.data.fingerprint import Fingerprint
from makemoe.errors import UsageError
from makemoe.training.resuming import damaged

TEXT = "text"
"""Key, under that of makemoe, with the fingerprint of the text in a checkpoint."""

OF_BATCHES = (
    *("seed", "data.batch_size", "trainer.accumulate_grad_batches", "model.block_size"),
    "trainer.overfit_batches",
)
"""Settings that decide which windows of the text are in a batch, and which batches in a step.

The batch size is that of all processes together, so their number is not one of them.
"""

OF_THE_TEXT = "data.corpus", "data.split_seed", "data.text_key"
"""Settings that may change the text, or which part of it is for training."""


def refuse_changed(
    checkpoint: Checkpoint, held: Mapping[str, Any], settings: Namespace, text: Fingerprint
) -> None:
    """Refuse to resume a run with other batches than it would have had.

    What an older checkpoint does not hold is not compared.

    Args:
        checkpoint: the checkpoint.
        held: its settings, by option.
        settings: those of the resumed run.
        text: what it would train on.

    Raises:
        UsageError: naming what has changed, from what to what.
        CheckpointError: for an invalid fingerprint.
    """
    changed = [f"--{key} was {was} and is {now}" for key, was, now in differing(held, settings)]
    before = fingerprint_in(checkpoint)
    if before is not None and before != text:
        names = [key for key, *_ in differing(held, settings, OF_THE_TEXT)]
        which = " and ".join(f"--{key}" for key in names) or "--data.corpus"
        now = str(text) if str(before) != str(text) else "as many others"
        changed.append(f"the text ({which}) was {before}, and is {now}")
    if changed:
        raise UsageError(
            f"{'; '.join(changed)}: the run would go on with other batches; set it back, or give "
            "--allow_changed"
        )


def differing(
    held: Mapping[str, Any], settings: Namespace, keys: tuple[str, ...] = OF_BATCHES
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each setting that a checkpoint holds with another value, and both values."""
    for key in keys:
        was, now = held.get(key), settings.get(key)
        if key in held and was != now:
            yield key, was, now


def fingerprint_in(checkpoint: Checkpoint) -> Fingerprint | None:
    """The fingerprint of the text in a checkpoint; None in an older one.

    Raises:
        CheckpointError: if it is not one.
    """
    held = checkpoint[KEY].get(TEXT)
    if held is None:
        return None
    kinds = Fingerprint.__annotations__
    if not isinstance(held, dict) or held.keys() != kinds.keys():
        raise damaged("its text is not a fingerprint")
    for name, kind in kinds.items():
        if type(held[name]) is not kind:
            raise damaged(f"the {name} of its text is not {kind.__name__}")
    return Fingerprint(**held)
