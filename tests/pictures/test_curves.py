import numpy as np

from makemoe.pictures import draw_curves

NAN = np.nan


def test_curves_go_through_the_logged_figures() -> None:
    columns = {
        "step": np.array([5.0, 10, 15, 20]),
        "train_loss": np.array([4.0, 3.5, 3.0, 2.9]),
        "val_loss": np.array([NAN, 3.6, NAN, 3.1]),
        "router/max_vio": np.array([0.9, 0.8, 0.7, 0.6]),
        "val_router/max_vio": np.array([NAN, 0.8, NAN, 0.5]),
        "val_router/layer_0/max_vio": np.array([NAN, 0.6, NAN, 0.2]),
        "val_router/layer_1/max_vio": np.array([NAN, 1.0, NAN, 0.8]),
    }
    figure = draw_curves(columns, 20)
    figure.canvas.draw()
    assert figure.texts[0].get_text().endswith(", step 20")
    above, below = figure.axes
    lines = [line for axes in (above, below) for line in axes.lines]
    for line, name in zip(
        lines, ("train_loss", "val_loss", "router/max_vio", "val_router/max_vio"), strict=True
    ):
        there = ~np.isnan(columns[name])
        np.testing.assert_array_equal(line.get_xdata(), columns["step"][there])
        np.testing.assert_array_equal(line.get_ydata(), columns[name][there])
    assert "nats" in above.get_ylabel()
    assert [text.get_text() for text in above.get_legend().get_texts()] == [
        "training batch: 2.900",
        "validation, exact: 3.100",
    ]
    (band,) = below.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices}
    assert {(10, 0.6), (20, 0.2), (10, 1.0), (20, 0.8)} <= corners


def test_a_loss_that_is_no_number_is_drawn_as_a_gap() -> None:
    columns = {name: np.array([NAN, NAN]) for name in ("train_loss", "val_loss", "router/max_vio")}
    nothing = {"val_router/max_vio": np.full(2, NAN), "val_router/layer_0/max_vio": np.full(2, NAN)}
    draw_curves({"step": np.array([5.0, 10])} | columns | nothing, 10).canvas.draw()
