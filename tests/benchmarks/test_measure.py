from functools import partial

import pytest

from benchmarks.measure import Bench, Contestant, Run, alternate, resident_mb


def test_runs_are_taken_in_turn() -> None:
    order: list[str] = []
    times = alternate([partial(order.append, "A"), partial(order.append, "B")], seconds=0)
    assert order == ["A", "B"] * 5
    assert [len(seconds) for seconds in times] == [3, 3]


def test_a_run_that_times_itself_is_believed() -> None:
    assert alternate([lambda: 7.0, lambda: None], seconds=0)[0] == [7.0] * 3


def hold(megabytes: int) -> Run:
    return lambda: len(bytearray(b"x") * (megabytes * 10**6)) * 0.0


@pytest.mark.skipif(resident_mb("VmHWM") is None, reason="no /proc on this system")
def test_peak_memory_is_that_of_the_work_alone() -> None:
    small, large = Bench().peaks([Contestant("", partial(hold, mb)) for mb in (10, 300)])
    assert small is not None
    assert large is not None
    assert 0 <= small < 100 < 290 < large < 400


def test_the_fastest_is_chosen_and_what_fails_is_left_out() -> None:
    def fail() -> Run:
        raise ValueError("not here")

    contestants = [
        Contestant("broken", fail),
        Contestant("slow", lambda: lambda: 1.1),
        Contestant("fast", lambda: lambda: 1.0),
    ]
    assert Bench(seconds=0).fastest("", contestants).name == "fast"
    with pytest.raises(ValueError, match="not here"):
        Bench(seconds=0).fastest("", contestants[:1])
