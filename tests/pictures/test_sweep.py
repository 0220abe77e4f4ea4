"""The picture of a sweep."""

import numpy as np
import pytest

from makemoe.pictures.sweep import Drawn, Scale, draw_sweep, limits_of


def trials(count: int = 12) -> list[Drawn]:
    random = np.random.default_rng(1)
    made = []
    for number in range(count):
        experts, rate = int(random.integers(4, 33)), float(random.uniform(0.001, 0.1))
        router = ("TopKRouter", "NoisyTopKRouter")[number % 2]
        values = {"num_experts": experts, "lr": rate, "router": router}
        told = {"num_experts": str(experts), "lr": f"{rate:.4g}", "router": router}
        made.append(Drawn(number, 1.5 + float(random.random()), number % 4 != 3, values, told))
    return made


def test_the_history_has_every_trial_and_the_lowest_so_far() -> None:
    own = trials()
    figure = draw_sweep(own, {"num_experts": 0.7, "lr": 0.3}, {"lr"}, seeds=2)
    figure.canvas.draw()
    history, importance, parallel, option = figure.axes[:4]
    complete = [one for one in own if one.is_complete]
    dots, crosses, lowest = history.lines
    assert list(dots.get_xdata()) == [one.number for one in complete]
    assert list(crosses.get_xdata()) == [3, 7, 11]
    expected = [min(o.loss for o in complete if o.number <= one.number) for one in complete]
    np.testing.assert_allclose(lowest.get_ydata(), expected)
    assert [bar.get_width() for bar in importance.patches] == [0.3, 0.7]
    assert [text.get_text() for text in importance.get_yticklabels()] == ["lr", "num_experts"]
    # A line per complete trial, the best one on top; and one upright line per option.
    assert len(parallel.lines) == len(complete) + 3
    best = min(complete, key=lambda one: one.loss)
    heights = parallel.lines[len(complete) - 1].get_ydata()
    low, high = (f(one.values["num_experts"] for one in complete) for f in (min, max))
    assert heights[0] == pytest.approx((best.values["num_experts"] - low) / (high - low))
    assert "num_experts against the loss" in option.get_title(loc="left")
    assert "9 complete trials, mean of 2 seeds each, and 3 pruned" in figure.get_suptitle()


def test_one_trial_and_one_option_are_drawn() -> None:
    one = Drawn(0, 1.5, True, {"router": "a"}, {"router": "a"})
    figure = draw_sweep([one], {}, set(), seeds=1)
    figure.canvas.draw()
    assert "too few trials" in figure.axes[1].texts[0].get_text()


def test_ratios_are_equally_long_on_a_logarithmic_scale() -> None:
    scale = Scale([4, 8, 16, 32], is_log=True)
    np.testing.assert_allclose([scale.height(v) for v in (4, 8, 16, 32)], np.linspace(0, 1, 4))
    assert Scale([4, 8, 12], is_log=False).height(8) == 0.5
    assert Scale(["b", "a", "c"], is_log=False).height("b") == 0.5
    assert Scale([3], is_log=False).height(3) == 0.5


def test_a_few_bad_trials_do_not_flatten_the_others() -> None:
    many = [Drawn(n, 1.5 + n / 1000, True, {}, {}) for n in range(20)]
    low, high = limits_of([*many, Drawn(20, 9.0, True, {}, {})])
    assert low < 1.5
    assert 1.51 < high < 1.6
