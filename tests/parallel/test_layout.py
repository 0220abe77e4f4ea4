"""How processes are arranged."""

import pytest

from makemoe.parallel.layout import Layout


@pytest.mark.parametrize("shard", [True, False])
@pytest.mark.parametrize("experts", [1, 2, 4])
def test_a_layout_has_as_many_places_as_processes(shard: bool, experts: int) -> None:
    layout = Layout.of(8, 1, shard, experts)
    assert layout.replicate * layout.shard == 8
    assert layout.experts == experts
