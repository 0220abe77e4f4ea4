import numpy as np
import pytest

from makemoe.pictures.scaling import Panel, draw_scaling

LINES = {
    "ddp": [(2, 0.9), (4, 0.8), (8, 0.4)],
    "fsdp": [(4, 0.7), (8, 0.6)],
    "experts + fsdp per machine": [(8, 0.61)],
}


def test_a_line_per_strategy_ends_with_its_name_and_its_last_efficiency() -> None:
    figure = draw_scaling("devices", [Panel("a link", LINES), Panel("another link", LINES)])
    figure.canvas.draw()
    assert len(figure.axes) == 2
    for axes in figure.axes:
        for line, points in zip(axes.lines, LINES.values(), strict=False):
            devices, shares = np.array(points).T
            np.testing.assert_allclose(line.get_xdata(), np.log2(devices))
            np.testing.assert_allclose(line.get_ydata(), shares)
        told = [text.get_text() for text in axes.texts]
        assert told == ["40%  ddp", "60%  fsdp", "61%  experts + fsdp per machine"]
        boxes = [text.get_window_extent() for text in axes.texts]
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)
        heights = sorted((box.y0 + box.y1) / 2 for box in boxes)
        assert np.diff(heights).min() > 10  # pixels
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "4", "8"]
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in figure.texts)


def test_what_fits_nowhere_is_named_and_a_strategy_keeps_its_colour() -> None:
    less = LINES | {"ddp": []}
    first, second = draw_scaling("it", [Panel("a", LINES), Panel("b", less)]).axes
    assert second.get_title(loc="left") == "b; does not fit: ddp"
    assert second.lines[0].get_color() == first.lines[1].get_color()
    assert first.lines[0].get_color() != first.lines[1].get_color()


def test_nothing_that_fits_is_drawn_as_nothing() -> None:
    figure = draw_scaling("it", [Panel("a", {"ddp": []})])
    figure.canvas.draw()
    assert [len(axes.lines) for axes in figure.axes] == [0]


@pytest.mark.parametrize("most", [2, 1 << 20])
def test_few_and_many_devices_are_drawn(most: int) -> None:
    points = [(1 << power, 0.5) for power in range(1, most.bit_length())]
    figure = draw_scaling("it", [Panel("a", {"ddp": points})])
    figure.canvas.draw()
    assert figure.axes[0].get_xticklabels()[-1].get_text() == f"{most:,}"
