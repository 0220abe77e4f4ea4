import pytest

from makemoe.pictures.symbols import CLASSES, classify, label


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        ("\n\r\u2028", "newline"),
        (" \t\u00a0", "space"),
        ("aeiouéöåαωώяёи", "vowels"),
        ("bzyßñçβσжй", "consonants"),
        ("AZÉΩЖ", "capitals"),
        ("中あאع", "other letters"),
        ("07²٣Ⅷ", "digits"),
        (".,!?'-“—。$&+€😀", "punctuation"),
        ("\x00\u0301\ufeff", "other"),
        (["the", "\n\n", ""], "several"),
        (["\udcc3", " \udcc3", "\udca9\udcc3", "\ufffd301"], "parts"),
    ],
)
def test_symbols_of_many_scripts_have_a_class(symbols: str | list[str], expected: str) -> None:
    assert expected in CLASSES
    assert {symbol: classify(symbol) for symbol in symbols} == dict.fromkeys(symbols, expected)


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("e", "e"),
        ("$", "$"),
        ("\n", "⏎"),
        (" ", "␣"),
        ("\t", "U+0009"),
        ("\u0301", "U+0301"),
        ("中", "U+4E2D"),
        ("Ж", "Ж"),
        (" the", "␣the"),
        ("international", "interna…"),
        ("\udcc3", "<C3>"),
        (" \udce6\udcbc", "␣<E6><B…"),
        ("\ufffd301", "\ufffd301"),
    ],
)
def test_what_cannot_be_seen_is_named(symbol: str, expected: str) -> None:
    assert label(symbol) == expected
