import random
from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemoe.data.split import TRAINING, VALIDATION, Split, better_seed, digest_of, side
from makemoe.errors import DataError


def digests(count: int) -> list[bytes]:
    return [digest_of(str(number).encode()).digest() for number in range(count)]


@pytest.mark.parametrize("seed", [0, 1, 2**62 - 1])
def test_a_tenth_is_held_out(seed: int) -> None:
    share = sum(side(digest, seed) for digest in digests(20_000)) / 20_000
    assert share == pytest.approx(0.1, abs=0.01)  # nearly five standard deviations


def test_the_split_is_the_keyed_hash_that_the_manual_describes() -> None:
    for seed in (0, 5):
        for digest in digests(200):
            key = seed.to_bytes(8, "little")
            drawn = blake2b(digest, digest_size=8, key=key).digest()
            assert side(digest, seed) == (int.from_bytes(drawn, "little") / 2**64 < 0.1)


def test_seeds_split_independently() -> None:
    pairs = Counter((side(digest, 0), side(digest, 1)) for digest in digests(20_000))
    assert pairs[VALIDATION, VALIDATION] / 20_000 == pytest.approx(0.01, abs=0.004)


def test_a_side_depends_neither_on_the_order_nor_on_the_others() -> None:
    some = digests(500)
    expected = {digest: Split(3).side(digest) for digest in some}
    random.Random(0).shuffle(some)
    split = Split(3)
    assert {digest: split.side(digest) for digest in some[:300]} == {
        digest: expected[digest] for digest in some[:300]
    }


def told(contents: list[bytes], seed: int) -> str:
    """What is said of documents with one empty side."""
    split, documents = Split(seed), [0, 0]
    for content in contents:
        documents[split.side(digest_of(content).digest())] += 1
    assert not all(documents)
    with pytest.raises(DataError) as caught:
        split.check(documents)
    return str(caught.value)


@given(st.lists(st.binary(), min_size=2, max_size=60), st.integers(0, 50))
def test_the_seed_that_an_error_names_leaves_no_side_empty(
    contents: list[bytes], seed: int
) -> None:
    if len(set(contents)) < 2:
        return
    held_out = [side(digest_of(content).digest(), seed) for content in contents]
    if 0 < sum(held_out) < len(contents):
        split = Split(seed)
        split.check([len(contents) - sum(held_out), sum(held_out)])
        return
    line = told(contents, seed)
    words = line.partition("--data.split_seed ")[2].split()
    better, count = int(words[0]), int(words[3])
    assert f"holds out {count} of them" in line
    assert sum(side(digest_of(c).digest(), better) for c in contents) == count
    assert 0 < count < len(contents)


def test_few_documents_hold_out_one() -> None:
    seed, count = better_seed(dict.fromkeys(digests(3), 1))
    assert count == 1
    assert sum(side(digest, seed) for digest in digests(3)) == 1


def test_all_on_the_other_side_is_told_too() -> None:
    seed = next(s for s in range(1000) if all(side(d, s) for d in digests(2)))
    line = told([b"0", b"1"], seed)
    assert line.startswith("all of its 2 documents are held out for validation; --data.split_seed ")


def test_documents_without_a_difference_cannot_be_split() -> None:
    assert told([b"the same"] * 5, 0).startswith("its 5 documents all have the same content, so")


def test_one_document_is_not_divided() -> None:
    assert told([b"alone"], 0).startswith("has only one document, and a document is not divided;")


def test_what_another_process_has_sorted_is_not_guessed() -> None:
    split = Split(0)
    split.side(digests(1)[0])
    with pytest.raises(
        DataError, match=r"none of its 9 documents .* pass another --data.split_seed"
    ):
        split.check([9, 0])
    assert TRAINING == 0  # the order of the sections in the file
