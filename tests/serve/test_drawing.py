"""Texts with different settings are drawn together as each would be alone."""

import itertools

import pytest
import torch

from makemoe.model.generate import Sampler, next_token_probs
from makemoe.serve.drawing import Drawing, draw

SETTINGS = list(itertools.product([0.0, 0.5, 1.7], [None, 1, 3, 50], [None, 0.3, 1.0]))


def test_each_row_is_drawn_by_its_own_settings_and_numbers() -> None:
    drawings = [Drawing(seed, *chosen) for seed, chosen in enumerate(SETTINGS)]
    alone = [Sampler([seed], *chosen) for seed, chosen in enumerate(SETTINGS)]
    for _ in range(70):  # past the numbers that are drawn ahead
        logits_BV = torch.randn(len(SETTINGS), 9)
        expected = [int(sampler(row[None])) for sampler, row in zip(alone, logits_BV, strict=True)]
        assert draw(logits_BV, drawings) == expected


def test_a_row_is_drawn_the_same_whatever_stands_beside_it() -> None:
    logits_BV = torch.randn(3, 9)
    for rows in ([0], [0, 1], [2, 1, 0]):
        drawings = [Drawing(7 + row, 0.8, top_p=0.9 if row else None) for row in rows]
        tokens = draw(logits_BV[rows], drawings)
        assert tokens[rows.index(0)] == int(Sampler([7], 0.8)(logits_BV[:1]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_no_token_and_draws_no_number(bad: float) -> None:
    logits_BV = torch.randn(2, 9)
    drawings = [Drawing(1), Drawing(2)]
    spoilt_BV = logits_BV.clone()
    spoilt_BV[0, 3] = bad
    assert draw(spoilt_BV, drawings)[0] is None
    again = draw(logits_BV, [drawings[0]] * 1 + [Drawing(2)])
    assert again[0] == int(Sampler([1])(logits_BV[:1]))


def test_a_distribution_per_row_is_that_of_the_row_alone() -> None:
    logits_BV = torch.randn(4, 9)
    settings = [(0.5, 2, 0.9), (1.0, 9, 0.5), (2.0, 5, 1.0), (1.3, 1, 0.1)]
    columns = [torch.tensor(column)[:, None] for column in zip(*settings, strict=True)]
    together = next_token_probs(logits_BV, columns[0].double(), columns[1], columns[2].double())
    for row, (temperature, top_k, top_p) in enumerate(settings):
        alone = next_token_probs(logits_BV[row : row + 1], temperature, top_k, top_p)
        torch.testing.assert_close(together[row], alone[0], rtol=1e-6, atol=1e-9)
