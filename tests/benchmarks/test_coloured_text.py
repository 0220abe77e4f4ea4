import json
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from benchmarks.coloured_text import (
    BETWEEN,
    COLOURS,
    HEADER,
    MARGIN,
    WIDE,
    Character,
    draw,
    main,
    read_trace,
    rows_of,
    usual_share,
)
from makemoe.errors import UsageError


def plain(text: str) -> list[Character]:
    return [Character(letter, False, [0]) for letter in text]


def corner(figure: Figure, x: int, y: int) -> tuple[float, ...]:
    """The colour of a cell near its upper left corner, where no letter reaches."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    return tuple(pixels[y + 3, x + 2, :3] / 255)


def test_each_character_stands_on_the_colour_of_its_first_expert_in_each_layer() -> None:
    experts = [[0, 7], [3, 2], [5, 5]]
    text = [
        Character(letter, False, chosen) for letter, chosen in zip("i.\n", experts, strict=True)
    ]
    figure = draw(text, layers=[1, 0], columns=4, title="")
    second = MARGIN + 4 * WIDE + BETWEEN
    for column, (first_layer, second_layer) in enumerate(experts):
        for left, expert in ((MARGIN, second_layer), (second, first_layer)):
            found = corner(figure, left + column * WIDE, HEADER)
            assert found == pytest.approx(to_rgb(COLOURS[expert]), abs=1 / 255)


def test_rows_end_at_newlines_and_break_long_lines_at_spaces() -> None:
    text = "one two\nthree fourfivesix seven"
    broken = ["".join(c.text for c in row) for row in rows_of(plain(text), 9)]
    assert broken == ["one two\n", "three ", "fourfives", "ix seven"]
    assert "".join(broken) == text


def test_a_trace_becomes_a_png_of_its_first_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = [None, {"experts": [2, 0], "weights": [0.6, 0.4]}]
    lines = [
        {"sample": 0, "text": "A", "prompt": True, "layers": []},  # never read by the model
        {"sample": 0, "text": "", "prompt": False, "layers": layers},  # completes no character
        {"sample": 0, "text": "éb", "prompt": False, "layers": layers},
        {"sample": 1, "text": "c", "prompt": False, "layers": layers},
    ]
    trace, picture = tmp_path / "routing.jsonl", tmp_path / "text.png"
    trace.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert read_trace(trace) == [
        Character(letter, False, [None, 2], sample)
        for letter, sample in zip("ébc", (0, 0, 1), strict=True)
    ]
    monkeypatch.setattr(sys, "argv", ["coloured_text", str(trace), str(picture), "--layers", "1"])
    main()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.startswith("layer 1: 100% of 3 characters are read by")
    monkeypatch.setattr(sys, "argv", ["coloured_text", str(trace), str(picture)])
    with pytest.raises(UsageError, match="--layers 0 is dense: choose a layer that has a router"):
        main()


def test_how_far_the_character_decides_is_the_share_of_its_usual_expert() -> None:
    text = [
        Character(letter, False, [expert])
        for letter, expert in zip("aaabb", (1, 1, 2, 0, 3), strict=True)
    ]
    # Two of three for a, one of two for b.
    assert usual_share(text, 0) == pytest.approx(3 / 5)
