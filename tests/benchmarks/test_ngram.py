"""The n-gram model, against its formula written out and against what is known of its losses."""

import math

import pytest

from benchmarks.ngram import losses, ngram_loss


def test_a_loss_is_that_of_the_formula() -> None:
    """Trained on "aab": a twice and b once, and after a, a once and b once."""
    a = (2 + 2 * 1 / 4) / (3 + 2)  # 2 kinds of characters, of 4 that there are
    b = (1 + 2 * 1 / 4) / (3 + 2)
    assert ngram_loss("aab", "ab", 0, 4) == pytest.approx(-(math.log(a) + math.log(b)) / 2)
    after_a = (1 + 2 * b) / (2 + 2)
    assert ngram_loss("aab", "ab", 1, 4) == pytest.approx(-math.log(after_a))
    # Nothing was seen after b: the shorter context alone decides.
    assert ngram_loss("aab", "ba", 1, 4) == pytest.approx(-math.log(a))


def test_probabilities_sum_to_one() -> None:
    train, symbols = "the cat sat on the mat", "abcdehmnost "
    for context in ("th", "at", "zz", "  "):
        ps = [math.exp(-ngram_loss(train, context + c, 2, len(symbols))) for c in symbols]
        assert sum(ps) == pytest.approx(1)


def test_a_text_that_repeats_is_easy_and_each_part_is_predicted_from_what_is_before_it() -> None:
    text = "abcdefgh" * 90 + "hgfedcba" * 10
    found = losses(text, order=3)
    assert found["unseen"] < 0.1
    assert found["last"] > 2
