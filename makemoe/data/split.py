"""Which documents of a corpus are held out for validation: about a tenth of them.

That of a document depends on its content and a seed and on nothing else, neither on its name or
place nor on the other documents. So more documents may be added without one changing sides.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import blake2b

from makemoe.errors import DataError

TRAINING, VALIDATION = 0, 1
"""The sides of a split."""

SEED_END = 1 << 62
"""Seeds are smaller."""

HELD_OUT = 10
"""One of so many documents is held out, on average."""

DIGEST_BYTES = 16
FEW = 100
"""With more documents than that, a side is empty in less than 1 of 30,000 corpora."""

MOST_SEEDS = 10_000
"""How many other seeds are tried for one that leaves no side empty."""

digest_of = partial(blake2b, digest_size=DIGEST_BYTES)
"""The hash of a document's bytes, without a byte order mark; it may be updated."""


class Split:
    """The sides of documents for one seed.

    Args:
        seed: from 0; another seed holds out other documents.

    Attributes:
        seen: the hashes of some documents, and how often each has occurred.
        sides: the side of each file of a corpus, if that was found out in advance; else empty.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.seen: Counter[bytes] = Counter()
        self.sides: list[int] = []

    def side(self, digest: bytes) -> int:
        """The side of the document with that hash of its content."""
        if len(self.seen) < FEW or digest in self.seen:
            self.seen[digest] += 1
        return side(digest, self.seed)

    def check(self, documents: Sequence[int]) -> None:
        """Raise DataError, with a way out, if there is no document on one of the sides.

        Args:
            documents: how many there are on each side.
        """
        if all(documents):
            return
        count = sum(documents)
        if count == 1:
            raise DataError(
                "has only one document, and a document is not divided; add others, or pass its "
                "text as a .txt file, of which the last tenth is held out for validation"
            )
        which = f"none of its {count} documents is"
        if not documents[TRAINING]:
            which = f"all of its {count} documents are"
        mend = "pass another --data.split_seed"
        if self.seen.total() == count:  # not if another process has sorted some of them
            if len(self.seen) == 1:
                raise DataError(
                    f"its {count} documents all have the same content, so none can be held out "
                    "for validation; add others, or pass one of them as a .txt file"
                )
            seed, held_out = better_seed(self.seen)
            mend = f"--data.split_seed {seed} holds out {held_out} of them"
        raise DataError(f"{which} held out for validation; {mend}")


def side(digest: bytes, seed: int) -> int:
    """VALIDATION for about one document in HELD_OUT, the same ones on every machine."""
    key = seed.to_bytes(8, "little")
    drawn = int.from_bytes(blake2b(digest, digest_size=8, key=key).digest(), "little")
    return VALIDATION if drawn < (1 << 64) // HELD_OUT else TRAINING


def better_seed(digests: Mapping[bytes, int]) -> tuple[int, int]:
    """The first seed that holds out a tenth of some documents, or one of few, and how many it does.

    Args:
        digests: how often each occurs.
    """
    most = max(*digests.values(), sum(digests.values()) // HELD_OUT)
    for seed in range(MOST_SEEDS):
        held_out = sum(n for digest, n in digests.items() if side(digest, seed) == VALIDATION)
        if 0 < held_out <= most:
            return seed, held_out
    raise AssertionError("one seed in five holds out one of two documents")
