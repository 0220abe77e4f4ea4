"""Text on the 256 colours of a terminal: one colour per expert."""

import os
import re
import sys

FIRST_COLOURS = (21, 166, 121, 90, 220, 135, 212, 65)
"""Eight of the terminal's 256 colours, distinct in all common kinds of colour blindness."""

CUBE = range(16, 232)
"""The colours that are the same on all terminals: 6 levels each of red, green and blue."""

LEVELS = (0, 95, 135, 175, 215, 255)
RESET = "\x1b[0m"
NO_NEWLINES = re.compile(r"[^\r\n]+")


def painted(text: str, colour: int) -> str:
    """The text on a colour of the cube, with escape codes.

    The colour is the background, so that spaces show it too. The text itself is black or white.
    Newlines are not coloured.
    """
    begin = f"\x1b[38;5;{ink_on(colour)};48;5;{colour}m"
    return NO_NEWLINES.sub(lambda line: f"{begin}{line[0]}{RESET}", text)


def why_no_colours() -> str | None:
    """Why standard output is not coloured, or None if it is."""
    if os.environ.get("NO_COLOR"):
        return "NO_COLOR is set"
    if os.environ.get("FORCE_COLOR"):
        return None
    if not sys.stdout.isatty():
        return "standard output is not a terminal (FORCE_COLOR=1 forces colours)"
    if os.environ.get("TERM") == "dumb":
        return "TERM is dumb (FORCE_COLOR=1 forces colours)"
    return None


def palette(size: int) -> list[int]:
    """`size` colours: first the chosen ones, then always the one farthest from all before.

    If there are more experts than colours, colours repeat.
    """
    colours = list(FIRST_COLOURS)
    nearest = {c: min(distance(c, known) for known in colours) for c in CUBE}
    while len(colours) < min(size, len(CUBE)):
        farthest = max(CUBE, key=nearest.__getitem__)
        colours.append(farthest)
        nearest = {c: min(nearest[c], distance(c, farthest)) for c in CUBE}
    return [colours[expert % len(colours)] for expert in range(size)]


def rgb(colour: int) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour in the cube."""
    place = colour - CUBE.start
    return LEVELS[place // 36], LEVELS[place // 6 % 6], LEVELS[place % 6]


def distance(a: int, b: int) -> int:
    """Squared distance of two colours in red, green and blue."""
    return sum((x - y) ** 2 for x, y in zip(rgb(a), rgb(b), strict=True))


def luminance(colour: int) -> float:
    """Relative luminance of a colour in the cube, 0 black to 1 white (WCAG 2.2)."""
    linear = [
        c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb(colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(colour: int) -> int:
    """Black or white, whichever has more contrast: above 0.179 that is black."""
    return 16 if luminance(colour) > 0.179 else 231
