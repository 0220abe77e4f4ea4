"""Names and groups of symbols in a picture, in any language."""

import unicodedata
from functools import cache

from matplotlib.ft2font import FT2Font

from makemoe.pictures.sheet import FONT_FILE

CLASSES = (
    *("newline", "space", "vowels", "consonants", "capitals", "other letters"),
    *("digits", "punctuation", "several", "parts", "other"),
)
"""Classes in the order drawn. `several`: more than one character; `parts`: not all of one."""

BYTES = range(0xDC80, 0xDD00)
"""Stand for the bytes 0x80 to 0xFF where these are parts of characters (PEP 383)."""

VOWELS = frozenset("aeiouαεηιουωаеиоуыэюяєі")  # noqa: RUF001
"""Vowels of the Latin, Greek and Cyrillic alphabets, without accents."""

HALF_VOWELS = "йў"
"""Consonants, although Unicode decomposes them into a vowel and a mark."""

LONGEST_LABEL = 8


def classify(symbol: str) -> str:
    """The class of a symbol."""
    if any(ord(character) in BYTES for character in symbol) or symbol[:-1].startswith("\ufffd"):
        return "parts"
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


def is_character(symbol: str) -> bool:
    """Whether a symbol is one character."""
    return classify(symbol) not in ("several", "parts")


def label(symbol: str) -> str:
    """The label of a symbol: itself if it is printable and in the font, else its code point.

    A byte that is a part of a character is shown as its value: `<C3>`.
    """
    named = "".join(map(_label, symbol))
    return named if len(named) <= LONGEST_LABEL else f"{named[: LONGEST_LABEL - 1]}…"


def _label(character: str) -> str:
    if character in "\n ":
        return {"\n": "⏎", " ": "␣"}[character]
    if ord(character) in BYTES:
        return f"<{ord(character) & 0xFF:02X}>"
    seen = character.isprintable() and not unicodedata.combining(character)
    return character if seen and ord(character) in glyphs() else f"U+{ord(character):04X}"


@cache
def glyphs() -> frozenset[int]:
    """The code points that the font of the pictures has."""
    return frozenset(FT2Font(FONT_FILE).get_charmap())
