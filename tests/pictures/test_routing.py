import numpy as np
import pytest
from legible import check_legible, pixels, words
from matplotlib.figure import Figure
from numpy.typing import NDArray

from makemoe.pictures import draw_load, draw_pairs, draw_symbols
from makemoe.pictures.routing import FEWEST_SEEN, MOST_SYMBOLS, grouped, pair_shares
from makemoe.pictures.sheet import NOTHING, Scale

TEXT = "\n Aaeb.中e" * 30 + "z$"
SYMBOLS = sorted(set(TEXT))
SHAPES = [(1, 2, 1), (2, 3, 3), (8, 8, 2), (2, 300, 8), (12, 64, 2)]


def counts(L: int, E: int, K: int, text: str = TEXT) -> tuple[NDArray[np.int64], ...]:
    """Of random routings: symbols by expert, and pairs of experts."""
    rng, symbols = np.random.default_rng(L * E), sorted(set(text))
    ids = np.array([symbols.index(c) for c in text])
    by_symbol = np.zeros((L, len(symbols), E), np.int64)
    pairs = np.zeros((L, E, E), np.int64)
    for layer in range(L):
        chosen_NK = np.argsort(rng.random((len(ids), E)) * np.arange(1, E + 1), -1)[:, :K]
        np.add.at(by_symbol[layer], (ids[:, None], chosen_NK), 1)
        np.add.at(pairs[layer], (chosen_NK[:, :, None], chosen_NK[:, None, :]), 1)
    return by_symbol, pairs


def figures(L: int, E: int, K: int) -> list[Figure]:
    by_symbol, pairs = counts(L, E, K)
    steps = np.array([100, 200, 1500])
    load_SLE = np.random.default_rng(0).dirichlet(np.ones(E), (3, L))
    drawn = [draw_load(steps, load_SLE, K, 1500), draw_symbols(by_symbol, SYMBOLS, K, 1500)]
    return [
        *(figure for figure in drawn if figure),
        *([draw_pairs(pairs, K, 1500)] if K > 1 else []),
    ]


@pytest.mark.parametrize(("L", "E", "K"), SHAPES)
def test_every_word_is_legible_on_the_sheet_and_over_no_other(L: int, E: int, K: int) -> None:
    for figure in figures(L, E, K):
        assert words(figure)[0].endswith(", step 1,500")
        check_legible(figure)


def test_loads_of_thousands_of_experts_are_not_drawn() -> None:
    loads_SLE = np.full((1, 1, 4096), 1 / 4096)
    assert draw_load(np.array([1]), loads_SLE, 2, 1) is None
    assert draw_load(np.array([1]), loads_SLE[..., :1024], 2, 1) is not None


def test_shares_are_those_of_the_counts() -> None:
    by_symbol, _ = counts(2, 4, 2)
    classes, *rest = grouped(by_symbol, SYMBOLS, 2)
    assert classes.labels == [
        *("newline", "space", "vowels", "consonants", "capitals", "other letters", "punctuation")
    ]
    assert [(group.name, group.labels) for group in rest] == [
        ("newline", ["⏎"]),
        ("space", ["␣"]),
        ("vowels", ["a", "e"]),
        ("consonants", ["b"]),  # z was seen once, as $ was
        ("capitals", ["A"]),
        ("other letters", ["U+4E2D"]),
        ("punctuation", ["."]),
    ]
    vowels = rest[2]
    assert vowels.seen_R.tolist() == [30, 60]
    for row, symbol in enumerate("ae"):
        expected = by_symbol[:, SYMBOLS.index(symbol)] / TEXT.count(symbol)
        np.testing.assert_allclose(vowels.share_LRE[:, row], expected)
        np.testing.assert_allclose(vowels.share_LRE[:, row].sum(-1), 2)
    assert classes.seen_R.tolist() == [30, 30, 90, 31, 30, 30, 31]
    consonants = by_symbol[:, SYMBOLS.index("b")] + by_symbol[:, SYMBOLS.index("z")]
    np.testing.assert_allclose(classes.share_LRE[:, 3], consonants / 31)


def test_rare_symbols_are_left_out_with_a_word() -> None:
    figure = draw_symbols(counts(1, 4, 2)[0], SYMBOLS, 2, 1)
    assert figure is not None
    (note,) = [text for text in words(figure) if text.startswith("Not shown")]
    assert note.startswith(f"Not shown: 2 characters seen fewer than {FEWEST_SEEN} times")
    assert not {"z", "$"} & set(words(figure))
    assert draw_symbols(counts(1, 4, 2, "abc")[0], "abc", 2, 1) is None


def test_of_many_symbols_the_most_frequent_are_shown() -> None:
    text = "".join(chr(0x4E00 + i) * (40 + i) for i in range(MOST_SYMBOLS + 50))
    _, only = grouped(counts(1, 2, 1, text)[0], sorted(set(text)), 1)
    assert only.labels == [f"U+{ord(symbol):04X}" for symbol in sorted(set(text))[50:]]


def test_pair_shares_are_conditional_frequencies() -> None:
    _, pairs = counts(2, 5, 3)
    pairs[1, 2] = pairs[1, :, 2] = 0
    shares = pair_shares(pairs)
    assert np.isnan(shares[:, np.arange(5), np.arange(5)]).all()
    assert np.isnan(shares[1, 2]).all()
    assert shares[0, 1, 3] == pairs[0, 1, 3] / pairs[0, 1, 1]
    np.testing.assert_allclose(np.nansum(shares[0], -1), 2)


def test_cells_have_the_colours_of_their_values() -> None:
    load_SLE = np.array([[[0.5, 0.5], [0.0, 1.0]], [[0.25, 0.75], [0.5, 0.5]]])
    figure = draw_load(np.array([10, 30]), load_SLE, 1, 30)
    drawn, scale = pixels(figure), Scale(even=1.0, most=2.0)
    height, width, _ = drawn.shape

    def at(label: str, number: int, right: float, down: float) -> list[int]:
        """The pixel that far from a label."""
        text = [text for text in figure.texts if text.get_text() == label][number]
        x, y = text.get_position()
        return drawn[round((1 - y) * height + down), round(x * width + right)].tolist()

    for layer in range(2):
        for expert in range(2):
            colour = scale.colour(load_SLE[-1, layer, expert] * np.full(1, 2.0))[0]
            assert at(f"layer {layer}", 0, 8 + 46 * expert, -10) == colour.tolist()
    # The history: a third of the way the first validation reaches to, the rest is the second's.
    for step, right in enumerate((50, 250)):
        for layer in range(2):
            colour = scale.colour(load_SLE[step, layer, :1, None] * 2)[0, 0]
            assert at(f"layer {layer}", 1, right, 12) == colour.tolist()


@pytest.mark.parametrize(("even", "most"), [(1.0, 2.0), (0.25, 1.0), (2 / 64, 1.0), (1.0, 1.0)])
def test_colours_get_lighter_with_the_value(even: float, most: float) -> None:
    scale = Scale(even, most)
    rgb = scale.colour(np.array([scale.value(i / 50) for i in range(51)]))[:, :3] / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert luminance[-1] > luminance[25] > luminance[0] + 0.1
    if even < most:
        assert scale.value(0.5) == pytest.approx(even)
    odd = scale.colour(np.array([np.nan, 2 * most, most]))
    assert odd[0].tolist() == NOTHING.tolist()
    assert odd[1].tolist() == odd[2].tolist()
