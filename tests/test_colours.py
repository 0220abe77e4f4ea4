"""The colours of experts: apart for all kinds of colour vision, and readable."""

import itertools
import re
from typing import Any

import numpy as np
import pytest

from makemoe.colours import CUBE, ink_on, luminance, painted, palette, rgb

# Colour vision with one kind of cone missing, in linear light (Machado et al. 2009, severity 1).
VISION = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    "all cones": np.eye(3).tolist(),
}


def seen_lab(colour: int, vision: list[list[float]]) -> Any:
    """A colour as someone sees it, in CIE L*a*b*."""
    share = np.array(rgb(colour)) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(vision) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ linear / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_eight_colours_stay_apart_for_the_colour_blind(vision: str) -> None:
    seen = [seen_lab(colour, VISION[vision]) for colour in palette(8)]
    # A difference of 2.3 is just noticeable; between 30 and 40 lie an orange and its yellow.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 30


def test_characters_can_be_read_on_every_colour() -> None:
    for colour in CUBE:
        ink, ground = sorted([luminance(ink_on(colour)), luminance(colour)])
        assert (ground + 0.05) / (ink + 0.05) >= 4.5  # WCAG 2.2, contrast, minimum


@pytest.mark.parametrize("experts", [1, 8, 64, 216, 300])
def test_every_expert_has_a_colour_of_its_own_while_there_are_any(experts: int) -> None:
    colours = palette(experts)
    assert len(colours) == experts
    assert len(set(colours)) == min(experts, 216)
    assert colours[:8] == palette(8)[:experts]


def test_newlines_are_not_painted_and_codes_leave_the_text() -> None:
    shown = painted("a b\n\nc\r\n", 21)
    assert re.findall(r"\x1b\[38;5;231;48;5;21m(.*?)\x1b\[0m", shown) == ["a b", "c"]
    assert re.sub(r"\x1b\[[\d;]*m", "", shown) == "a b\n\nc\r\n"
    assert painted("", 21) == ""
