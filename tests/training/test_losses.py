import math
from typing import Any

import numpy as np
import pytest
import torch

from makemoe.data.bpe import BPETokenizer
from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer, Ids, Tokenizer
from makemoe.data.windows import IGNORE, ConsecutiveWindows, EvaluationBatches
from makemoe.training.losses import (
    bits_per_byte,
    bits_per_character,
    cross_entropy,
    summed_cross_entropy,
)
from makemoe.training.metrics import TokenLoss

B, T, V = 3, 5, 7


def example() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Logits, targets with gaps, and the loss of each counted position, by NumPy."""
    logits, targets = torch.randn(B, T, V), torch.randint(V, (B, T))
    targets[0, 3:] = IGNORE
    scores = logits.double().numpy()
    log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    counted = np.argwhere(targets.numpy() != IGNORE)
    return logits, targets, np.array([-log_probs[b, t, targets[b, t]] for b, t in counted])


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_losses_are_as_precise_as_the_logits(dtype: torch.dtype, close: float) -> None:
    logits = torch.randn(B, T, V, dtype=torch.float64)
    targets = torch.randint(V, (B, T))
    scores = logits.numpy()
    losses = np.log(np.exp(scores).sum(-1)) - np.take_along_axis(
        scores, targets.numpy()[..., None], -1
    ).squeeze(-1)
    mean = cross_entropy(logits.to(dtype), targets)
    assert mean.dtype == dtype
    assert mean.item() == pytest.approx(losses.mean(), rel=close)
    assert summed_cross_entropy(logits.to(dtype), targets).item() == pytest.approx(
        losses.sum(), rel=close
    )


def test_mean_is_over_the_positions_that_count() -> None:
    logits, targets, losses = example()
    assert len(losses) == B * T - 2
    assert cross_entropy(logits, targets).item() == pytest.approx(losses.mean(), rel=1e-6)


def test_sum_is_over_the_positions_that_count_in_float64() -> None:
    logits, targets, losses = example()
    total = summed_cross_entropy(logits, targets)
    assert total.dtype == torch.float64
    assert total.item() == pytest.approx(losses.sum(), rel=1e-6)


def test_uniform_logits_cost_ln_V() -> None:
    loss = cross_entropy(torch.zeros(B, T, 65), torch.randint(65, (B, T)))
    assert loss.item() == pytest.approx(math.log(65))


def test_bfloat16_logits_are_reduced_in_float32() -> None:
    logits, targets, _ = example()
    rounded = logits.bfloat16()
    assert cross_entropy(rounded, targets).dtype == torch.float32
    for loss in (cross_entropy, summed_cross_entropy):
        torch.testing.assert_close(loss(rounded, targets), loss(rounded.float(), targets))


def test_gradient_is_the_probability_less_the_target() -> None:
    logits, targets, losses = example()
    logits.requires_grad_()
    cross_entropy(logits, targets).backward()
    counted = targets != IGNORE
    one_hot = torch.nn.functional.one_hot(targets.where(counted, 0), V)
    expected = (logits.detach().softmax(-1) - one_hot) * counted[..., None] / len(losses)
    torch.testing.assert_close(logits.grad, expected)


class Syllables(CharTokenizer):
    """Its ids stand for one to three characters."""

    utf8_bytes = Tokenizer.utf8_bytes

    def decode(self, ids: Any) -> str:
        return "".join("a" * (1 + id % 3) for id in ids)

    def characters(self, ids: Ids) -> int:
        return Tokenizer.characters(self, ids)


def test_bits_per_character_count_the_characters_that_are_predicted() -> None:
    ids = np.array([2, 0, 1, 2, 2])  # 1 + 2 + 3 + 3 after the first
    nats = 1.5
    expected = nats * 4 / 9 / math.log(2)
    assert bits_per_character(nats, ids, Syllables("abc")) == pytest.approx(expected)
    assert bits_per_character(nats, ids, CharTokenizer("abc")) == pytest.approx(1.5 / math.log(2))
    assert math.isnan(bits_per_character(nats, ids[:1], Syllables("abc")))
    assert bits_per_byte(nats, ids, Syllables("abc")) == pytest.approx(expected)  # a byte each


def test_bits_per_byte_count_the_bytes_that_are_predicted() -> None:
    text = "aé漢\U0001f600z"  # 1, 2, 3, 4 bytes and 1
    for tokenizer in (
        CharTokenizer().fit(text),
        ByteTokenizer(),
        ByteTokenizer(end_of_text=True),
        BPETokenizer(257).fit(text),
    ):
        ids = tokenizer.encode(text)
        # Each token costs one bit: the text is all tokens but the first, which is the "a".
        found = bits_per_byte(math.log(2), ids, tokenizer)
        assert found == pytest.approx((len(ids) - 1) / 10)
        assert math.isnan(bits_per_byte(1.0, ids[:1], tokenizer))


@pytest.mark.parametrize("end", [False, True])
def test_the_end_of_a_text_is_predicted_and_has_no_bytes(end: bool) -> None:
    tokenizer = BPETokenizer(257).fit("ab") if end else ByteTokenizer(end_of_text=True)
    assert tokenizer.end_of_text is not None
    one = tokenizer.encode("abc").tolist()
    ids = np.array([*one, tokenizer.end_of_text, *one])
    assert tokenizer.utf8_bytes(ids) == 6
    assert bits_per_byte(math.log(2), ids, tokenizer) == pytest.approx(6 / 5)


def test_a_uniform_model_has_the_bits_per_byte_of_its_vocabulary() -> None:
    """It has log2 V bits per token, so the same text costs more or less in other tokens."""
    text = "the king's men, the queen's men\n" * 40
    for tokenizer in (CharTokenizer().fit(text), ByteTokenizer(), BPETokenizer(270).fit(text)):
        ids = tokenizer.encode(text)
        windows = ConsecutiveWindows(ids, 16)
        metric = TokenLoss()
        for batch in EvaluationBatches(len(windows), 7):
            _, targets = windows.__getitems__(batch)
            metric.update(torch.zeros(*targets.shape, tokenizer.vocab_size), targets)
        bits = bits_per_byte(metric.compute().item(), ids, tokenizer)
        first = len(tokenizer.decode(ids[:1]))
        per_token = math.log2(tokenizer.vocab_size)
        expected = per_token * (len(ids) - 1) / (len(text) - first)
        assert bits == pytest.approx(expected, rel=1e-6)
