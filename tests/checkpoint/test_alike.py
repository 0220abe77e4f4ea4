from typing import Any

import pytest
import torch

from makemoe.checkpoint.alike import Unlike, check_alike

OWN: dict[str, Any] = {
    "count": 3,
    "offset": -1,
    "share": 0.5,
    "last": False,
    "mode": "min",
    "nothing": None,
    "rates": [0.1, 0.2],
    "weights": torch.zeros(2, 3),
    "inner": {0: {"ready": 0}},
}


def test_other_figures_are_alike() -> None:
    other = OWN | {
        "count": 99,
        "offset": 5,
        "share": 2,
        "last": True,
        "mode": "max",
        "nothing": 7,
        "rates": (1.0, 2),
        "weights": torch.ones(2, 3),
        "inner": {0: {"ready": 12}},
    }
    check_alike(other, OWN)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"count": "3"}, "state.count is a str"),
        ({"count": True}, "state.count is a bool"),
        ({"count": -1}, "state.count"),
        ({"count": 1 << 70}, "state.count"),
        ({"offset": -2}, "state.offset"),
        ({"share": "x"}, "state.share"),
        ({"last": 0}, "state.last"),
        ({"mode": None}, "state.mode"),
        ({"nothing": {}}, "state.nothing"),
        ({"rates": [1.0]}, "state.rates is not a list of 2"),
        ({"rates": 3}, "state.rates is not a list"),
        ({"rates": [1.0, None]}, "state.rates.1"),
        ({"weights": torch.zeros(3, 2)}, r"state.weights is not a tensor of shape \(2, 3\)"),
        ({"weights": torch.zeros(2, 3).long()}, "state.weights"),
        ({"weights": 0.0}, "state.weights"),
        ({"inner": {}}, "state.inner.0 is missing"),
        ({"inner": {0: {"ready": 0, "b": 1}}}, "state.inner.0.b is unknown"),
        ({"inner": [1]}, "state.inner is a list"),
    ],
)
def test_other_kinds_are_not(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(Unlike, match=where):
        check_alike(OWN | changes, OWN, "state")
