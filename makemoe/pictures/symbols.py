"""Names and groups of symbols in a picture, in any language."""

import unicodedata
from functools import cache

from matplotlib.ft2font import FT2Font

from makemoe.pictures.sheet import FONT_FILE

CLASSES = (
    *("newline", "space", "vowels", "consonants", "capitals", "other letters"),
    *("digits", "punctuation", "several", "other"),
)
"""Classes in the order drawn. `several`: symbols of more than one character."""

VOWELS = frozenset("aeiouαεηιουωаеиоуыэюяєі")  # noqa: RUF001
"""Vowels of the Latin, Greek and Cyrillic alphabets, without accents."""

HALF_VOWELS = "йў"
"""Consonants, although Unicode decomposes them into a vowel and a mark."""

LONGEST_LABEL = 8


def classify(symbol: str) -> str:
    """The class of a symbol."""
    if len(symbol) != 1:
        return "several"
    kind = unicodedata.category(symbol)
    if symbol in "\n\r\v\f\x85\u2028\u2029":
        return "newline"
    if symbol.isspace():
        return "space"
    if kind in ("Lu", "Lt"):
        return "capitals"
    if kind == "Ll":
        base = unicodedata.normalize("NFD", symbol)[0]
        return "vowels" if base in VOWELS and symbol not in HALF_VOWELS else "consonants"
    if kind[0] == "L":
        return "other letters"
    return {"N": "digits", "P": "punctuation", "S": "punctuation"}.get(kind[0], "other")


def label(symbol: str) -> str:
    """The label of a symbol: itself if it is printable and in the font, else its code point."""
    named = "".join(map(_label, symbol))
    return named if len(named) <= LONGEST_LABEL else f"{named[: LONGEST_LABEL - 1]}…"


def _label(character: str) -> str:
    if character in "\n ":
        return {"\n": "⏎", " ": "␣"}[character]
    seen = character.isprintable() and not unicodedata.combining(character)
    return character if seen and ord(character) in _glyphs() else f"U+{ord(character):04X}"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(FONT_FILE).get_charmap())
