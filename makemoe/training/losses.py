"""Losses of logits and targets in nats per token, and in bits per character and per byte."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from makemoe.data.tokenizer import Ids, Tokenizer
from makemoe.data.windows import IGNORE
from makemoe.devices import in_float64


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean of -ln p(target), nats per token; positions marked IGNORE do not count.

    In float32, or float64 if the logits are.
    """
    return F.cross_entropy(
        wide(logits_BTV).flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE
    )


def summed_cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum of -ln p(target), nats, in float64; positions marked IGNORE do not count.

    It is on the CPU if the device of the logits has no float64.
    """
    losses_N = F.cross_entropy(
        wide(logits_BTV).flatten(0, 1),
        targets_BT.flatten(),
        ignore_index=IGNORE,
        reduction="none",
    )
    return in_float64(losses_N).sum()


def wide(logits_BTV: Tensor) -> Tensor:
    """Logits in float32, or float64 if they are."""
    return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))


def bits_per_character(nats_per_token: float, ids: Ids, tokenizer: Tokenizer) -> float:
    """The mean loss over a text in bits per character, which does not depend on the tokenizer.

    Args:
        nats_per_token: the mean loss over all tokens of `ids` but the first.
        ids: the text, shape (tokens,).
        tokenizer: counts the characters that the ids stand for.
    """
    return bits_per(tokenizer.characters(ids[1:]), nats_per_token, ids)


def bits_per_byte(nats_per_token: float, ids: Ids, tokenizer: Tokenizer) -> float:
    """The mean loss over a text in bits per byte of the text in UTF-8.

    It does not depend on the tokenizer either. The ends of texts between documents are predicted
    too, and are no bytes.

    Args:
        nats_per_token: the mean loss over all tokens of `ids` but the first.
        ids: the text, shape (tokens,).
        tokenizer: counts the bytes that the ids stand for.
    """
    return bits_per(tokenizer.utf8_bytes(ids[1:]), nats_per_token, ids)


def bits_per(count: int, nats_per_token: float, ids: Ids) -> float:
    """The loss of all tokens but the first in bits, over a count; NaN if that is 0."""
    return nats_per_token * (len(ids) - 1) / count / math.log(2) if count else math.nan
