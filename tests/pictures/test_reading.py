import numpy as np
import pytest
from legible import check_legible, pixels, words
from numpy.typing import NDArray

from makemoe.pictures import draw_reading
from makemoe.pictures.reading import ABOVE, COLOURS, HIGH, LEFT, NARROW, in_lines
from makemoe.pictures.sheet import HEADER, WIDEST
from makemoe.pictures.symbols import label

TEXT = "But, soft!\nWhat light through yonder window breaks? It is the east. "


def shares(L: int, N: int, E: int) -> NDArray[np.float32]:
    """Each token's weights, for two experts."""
    weights_LNE = np.random.default_rng(0).random((L, N, E)).astype(np.float32)
    weights_LNE *= weights_LNE >= np.sort(weights_LNE, -1)[..., [-2]]
    return weights_LNE / weights_LNE.sum(-1, keepdims=True)


@pytest.mark.parametrize(("L", "E", "repeats"), [(1, 2, 1), (3, 8, 2), (2, 64, 4)])
def test_every_word_is_legible_on_the_sheet_and_over_no_other(L: int, E: int, repeats: int) -> None:
    symbols = list(TEXT * repeats)
    figure = draw_reading(shares(L, len(symbols), E), symbols)
    check_legible(figure)
    assert figure.canvas.get_width_height()[0] <= WIDEST
    assert words(figure)[0] == "Which experts read each character"
    tokens = [word for word in words(figure) if word in set(map(label, symbols))]
    assert [word for word in tokens if not word.isdigit()] == list(map(label, symbols))


def test_tokens_of_several_characters_have_room() -> None:
    symbols = ["The", " question", "\udcc3", "\ufffd7", " is"] * 12
    figure = draw_reading(shares(2, len(symbols), 3), symbols, layers=[1, 4])
    check_legible(figure)
    assert words(figure)[0] == "Which experts read each token"
    assert {"layer 1", "layer 4", "<C3>"} <= set(words(figure))


def test_each_cell_has_the_colour_of_its_weight() -> None:
    shares_LNE = shares(2, 5, 3)
    drawn = pixels(draw_reading(shares_LNE, list("abcde")))
    for layer in range(2):
        for token in range(5):
            for expert in range(3):
                x = LEFT + token * NARROW + NARROW // 2
                y = HEADER + ABOVE + layer * (3 * HIGH + 10) + expert * HIGH + HIGH // 2
                expected = COLOURS(float(shares_LNE[layer, token, expert]), bytes=True)
                assert abs(drawn[y, x].astype(int) - expected).max() <= 1


def test_many_experts_are_drawn_small_and_too_many_not_at_all() -> None:
    figure = draw_reading(shares(12, 9, 512), list("many more"))
    check_legible(figure)
    assert figure.canvas.get_width_height()[1] < 13_000
    with pytest.raises(ValueError, match="12 layers of 1024 experts are too many for a picture"):
        draw_reading(shares(12, 9, 1024), list("many more"))


def test_darker_is_more_for_every_kind_of_colour_vision() -> None:
    red, green, blue, _ = COLOURS(np.linspace(0, 1, 50)).T
    assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) < 0).all()


def test_lines_are_few_and_even_and_break_between_words() -> None:
    lines = in_lines(list(TEXT), 40)
    parts = ["".join(TEXT[n] for n in line) for line in lines]
    assert parts == ["But, soft!\nWhat light through yonder ", "window breaks? It is the east. "]
    assert in_lines(["One", " two", " three", " four"], 3) == [range(2), range(2, 4)]
    assert in_lines(list("unbroken"), 3) == [range(3), range(3, 6), range(6, 8)]
    assert in_lines([], 3) == []


def test_of_a_text_without_an_end_the_beginning_is_drawn() -> None:
    symbols = list("word " * 4000)
    figure = draw_reading(shares(2, len(symbols), 8), symbols)
    [left_out] = [word for word in words(figure) if word.startswith("Not shown")]
    shown = words(figure).count("w") * 5
    assert left_out == f"Not shown, without room: the last {len(symbols) - shown:,} characters."
    assert figure.canvas.get_width_height()[1] <= 6000 + 20
    check_legible(figure)
