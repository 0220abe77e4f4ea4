"""Tells whether two texts are the same tokens, split at the same place."""

import hashlib
from typing import NamedTuple

import numpy as np

from makemoe.data.tokenizer import Ids

HASHED_IDS = 1 << 22
"""Of a text with more tokens, evenly spread blocks with so many in all are hashed."""

BLOCK_IDS = 1 << 12


class Fingerprint(NamedTuple):
    """What a checkpoint holds of the text of its run.

    Attributes:
        tokens: number of tokens.
        training: how many of them are the training split.
        digest: of the tokens; of a text above HASHED_IDS, of blocks of it. So a change that keeps
            the length of a very long text may not be noticed.
    """

    tokens: int
    training: int
    digest: str

    @staticmethod
    def of(ids: Ids, split: int) -> "Fingerprint":
        """The fingerprint of a text that is split before the token `split`."""
        digest = hashlib.sha256()
        apart = BLOCK_IDS * max(1, -(-len(ids) // HASHED_IDS))
        for begin in range(0, len(ids), apart):
            # In one dtype: how ids are stored depends on where they are.
            digest.update(np.asarray(ids[begin : begin + BLOCK_IDS], dtype="<u4").tobytes())
        return Fingerprint(len(ids), split, digest.hexdigest()[:32])

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens, {self.training:,} of them for training"
