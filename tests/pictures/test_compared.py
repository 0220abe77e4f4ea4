import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemoe.pictures.compared import Compared, draw_compared, spaced

NAMES = ("num_experts=4", "num_experts=8", "dense-active")


def compared(seeds: int = 3) -> list[Compared]:
    random = np.random.default_rng(1)
    steps = range(10, 101, 10)
    return [
        Compared(name, 100, [[(s, 4 / s + random.random()) for s in steps] for _ in range(seeds)])
        for name in NAMES
    ]


def test_lines_are_means_and_bands_are_sample_standard_deviations() -> None:
    variants = compared()
    figure = draw_compared(variants, "tokens", 3)
    figure.canvas.draw()
    [axes] = figure.axes
    for one, line, band in zip(variants, axes.lines[:3], axes.collections, strict=False):
        losses = np.array([[loss for _, loss in curve] for curve in one.curves])
        np.testing.assert_allclose(line.get_ydata(), losses.mean(0))
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1000, 10001, 1000))
        heights = band.get_paths()[0].vertices[:, 1]
        top = (losses.mean(0) + losses.std(0, ddof=1)).max()
        assert heights.max() == pytest.approx(top)
    assert len({line.get_color() for line in axes.lines[:3]}) == 3
    assert "tokens" in axes.get_xlabel()
    assert "nats per token" in axes.get_ylabel()
    for text, one in zip(axes.texts, variants, strict=True):
        assert text.get_text().endswith(one.name)
        box = text.get_window_extent()
        assert box.x1 <= figure.bbox.x1, "a label is cut off"
    assert "sample standard deviation of 3 seeds" in figure.texts[1].get_text()


def test_flops_and_one_seed_are_named() -> None:
    figure = draw_compared(compared(1), "flops", 1)
    assert "floating-point operations" in figure.axes[0].get_xlabel()
    assert figure.texts[1].get_text() == "one seed"
    figure = draw_compared(compared(1), "flops", 1, "bits per byte")
    assert "bits per byte" in figure.axes[0].get_ylabel()


@pytest.mark.parametrize("name", ["x" * 200, "$a_b$, 中文", "=" * 50])
def test_any_name_fits_beside_the_curves(name: str) -> None:
    figure = draw_compared([c._replace(name=name + c.name) for c in compared()], "tokens", 3)
    figure.canvas.draw()  # without a warning of a character that the font lacks
    for text, one in zip(figure.axes[0].texts, compared(), strict=True):
        assert text.get_text().endswith(one.name)
        assert text.get_window_extent().x1 <= figure.bbox.x1
    assert figure.axes[0].get_position().width > 0.2


def test_one_validation_of_one_run_is_drawn() -> None:
    figure = draw_compared([Compared("a", 100, [[(10, 2.5)]])], "tokens", 1)
    figure.canvas.draw()
    low, high = figure.axes[0].get_ylim()
    assert low < 2.5 < high
    assert high - low == pytest.approx(0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_labels_keep_their_distance_and_their_order(places: list[float]) -> None:
    found = spaced(places, 0.05)
    order = sorted(range(len(places)), key=places.__getitem__)
    inner = np.diff([found[index] for index in order])
    assert (inner >= 0.05 - 1e-9).all()
    if (np.diff(sorted(places)) >= 0.05).all():
        assert found == pytest.approx(places)
