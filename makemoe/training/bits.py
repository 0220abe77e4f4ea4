"""The validation loss in bits per byte, in which models with different tokenizers compare."""

from typing import Any

from makemoe.data.datamodule import overfit_batches, text_data
from makemoe.training.losses import bits_per


def bits_of_validation(nats_per_token: float, trainer: Any) -> float | None:
    """The loss of a trainer's validation in bits per byte of the validation split.

    None if that is not known: without a TextDataModule, or if only a part of the split, or another
    text, was evaluated.
    """
    data = text_data(trainer)
    limit = trainer.limit_val_batches
    is_whole = isinstance(limit, float) and limit == 1.0 and not overfit_batches(trainer)
    if data is None or not is_whole:
        return None
    ids = data.validated_texts["val_loss"].ids
    return bits_per(data.validated_bytes, nats_per_token, ids)
