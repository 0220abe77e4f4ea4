"""The row of `makemoe serve`, against a server in this process."""

import os

import pytest
from serving import live, of_bytes

from benchmarks.measure import Bench
from benchmarks.serving import QUICK, Address, measured


def test_every_line_is_measured_and_the_texts_are_compared() -> None:
    model = of_bytes()
    model.net.head.bias.data[256] = -100  # no text ends early
    with live(model) as server:
        lines = measured(Bench(quick=True), QUICK, model, Address(server.port, os.getpid()))
        server.wait_idle()
    assert [line.unit for line in lines] == ["tokens/s", "ms", "ms", "MB"]
    assert all(line.ours is not None and line.ours > 0 for line in lines)
    assert all(line.theirs is not None and line.theirs > 0 for line in lines)
    assert lines[0].note == "3 of 3 texts are the same"
    assert lines[1].ours <= lines[2].ours  # type: ignore[operator]
    assert lines[3].judged == pytest.approx(100, abs=20)
