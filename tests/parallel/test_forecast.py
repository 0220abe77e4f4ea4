"""Times of a forecast, against sums worked out by hand; which strategy it takes."""

from typing import Any

import pytest

from makemoe.hardware import Link
from makemoe.parallel.forecast import (
    Forecast,
    Machines,
    Training,
    Way,
    best,
    forecast,
    forecasts,
    seconds,
    ways,
)
from makemoe.parallel.stored import Kept
from makemoe.parallel.traffic import Kind, Peers, Sent, Sizes, Step

GIGA = 10**9
LINK, NETWORK = Link("link", 100 * GIGA, 1e-6), Link("network", 10 * GIGA, 1e-5)
MACHINES = Machines(
    flops=1e12,
    share=0.5,
    memory=1e9,
    memory_rate=1e11,
    link=LINK,
    network=NETWORK,
    start=1e-4,
    overlap=0.5,
    per_machine=8,
)
SIZES = Sizes(
    others=10**6,
    routed=4 * 10**6,
    blocks=4,
    routed_layers=4,
    width=64,
    num_experts=8,
    top_k=2,
    told=0,
    largest=10**6,
)
TRAINING = Training(
    SIZES, Step(1000), Kept(2, 10**5, 2, averages=False, activations=10**7), flops=10**7
)


def one(kind: Kind, peers: Peers, nbytes: float = 1e9, times: int = 1) -> Sent:
    return Sent("it", kind, nbytes, times, peers)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        # Within a machine: a hop per neighbour, twice for a sum.
        (one("gather", Peers(8)), 1e-4 + 7e-6 + 1e9 / 1e11),
        (one("scatter", Peers(4), times=3), 3 * (1e-4 + 3e-6) + 1e9 / 1e11),
        (one("reduce", Peers(8)), 1e-4 + 14e-6 + 1e9 / 1e11),
        (one("exchange", Peers(8)), 1e-4 + 1e-6 + 1e9 / 1e11),
        # A ring over 4 machines of 8: 28 hops within and 3 between; 8 adapters at once.
        (one("gather", Peers(32)), 1e-4 + 28e-6 + 3e-5 + 1e9 / 8e10),
        # Sums go up and down a tree of 4 machines.
        (one("reduce", Peers(32)), 1e-4 + 14e-6 + 4e-5 + 1e9 / 8e10),
        # One device of each of 4 machines: its own adapter.
        (one("reduce", Peers(4, stride=8)), 1e-4 + 4e-5 + 1e9 / 1e10),
        # 24 of 31 others are on other machines.
        (one("exchange", Peers(32)), 1e-4 + 1e-5 + 1e9 * 24 / 31 / 1e10),
    ],
)
def test_a_collective_takes_its_start_its_hops_and_its_bytes(sent: Sent, expected: float) -> None:
    assert seconds(sent, MACHINES) == pytest.approx(expected, rel=1e-12)


def test_devices_share_an_adapter_that_is_the_machine_s() -> None:
    shared = MACHINES._replace(network=NETWORK._replace(shared=True))
    sent = one("reduce", Peers(4, stride=8))
    more = seconds(sent, shared) - seconds(sent, MACHINES)
    assert more == pytest.approx(7 * 1e9 / 1e10)
    # A ring that uses all devices of a machine has the adapter to itself.
    assert seconds(one("gather", Peers(32)), shared) == pytest.approx(
        1e-4 + 28e-6 + 3e-5 + 1e9 / 1e10
    )


def ddp(**changes: Any) -> Forecast:
    return forecast(TRAINING, Way("ddp", None), 8, MACHINES._replace(**changes))


def test_a_step_is_products_update_and_what_is_sent_beside_neither() -> None:
    found = ddp()
    assert found.compute_s == pytest.approx(1000 * 1e7 / (0.5 * 1e12))
    weights = 4 * 5e6
    # Weights and both moments are read and written, gradients read.
    assert found.update_s == pytest.approx((2 * (1 + 2) + 1) * weights / 1e11)
    sending = sum(seconds(sent, MACHINES) for sent in found.sent)
    assert found.nbytes == pytest.approx(2 * weights * 7 / 8)
    # Sums of gradients begin in the backward pass, which is two thirds of 20 ms.
    hidden = 0.5 * 2 / 3 * 0.02
    assert found.waiting_s == pytest.approx(max(0, sending - hidden))
    assert ddp(overlap=0.0).waiting_s == pytest.approx(sending)
    assert found.step_s == pytest.approx(found.compute_s + found.update_s + found.waiting_s)
    assert found.efficiency == pytest.approx(found.compute_s / found.step_s)


def test_tokens_that_travel_are_waited_for() -> None:
    way = next(way for alike in ways(SIZES, 8, 8, 4) for way in alike if way.name != "ddp")
    found = forecast(TRAINING, way, 8, MACHINES._replace(overlap=1.0))
    sent = [s for s in found.sent if s.kind == "exchange"]
    assert found.exchange_s == pytest.approx(sum(seconds(s, MACHINES) for s in sent))
    assert found.exchange_s > 0


def test_the_ways_of_one_process_of_a_machine_and_of_several() -> None:
    def names(processes: int, experts: int | None = None) -> list[list[str]]:
        return [[way.name for way in alike] for alike in ways(SIZES, processes, 8, experts)]

    assert names(1) == [["one process"]]
    assert names(2) == [["ddp"], ["fsdp"], ["experts 2"], ["experts 2 + fsdp"]]
    assert names(16, 4) == [
        ["experts 4"],
        ["experts 4 + fsdp"],
        ["experts 4 + fsdp per machine"],
    ]
    assert names(16, 1) == [["ddp"], ["fsdp"], ["fsdp per machine"]]
    # The divisors of the experts that divide 12 processes, too.
    assert names(12)[-1] == ["experts 2 + fsdp", "experts 4 + fsdp"]


def test_a_model_without_routers_has_no_experts_to_divide() -> None:
    dense = SIZES._replace(routed_layers=0, routed=0)
    assert [way.name for alike in ways(dense, 4, 8, None) for way in alike] == ["ddp", "fsdp"]


def test_of_strategies_as_fast_as_each_other_the_simpler_one_is_taken() -> None:
    first = ddp()
    slower = first._replace(compute_s=first.compute_s * 1.005)
    much_slower = first._replace(compute_s=first.compute_s * 2)
    too_large = first._replace(limit=1.0)
    assert best([slower, first]) is slower
    assert best([much_slower, first]) is first
    assert best([too_large, much_slower]) is much_slower
    smaller = too_large._replace(stored={"weights": 2})
    assert best([too_large, smaller]) is smaller


def test_with_more_devices_a_strategy_that_divides_all_weights_stores_less() -> None:
    found = {
        processes: {one.way.family: one for one in forecasts(TRAINING, processes, MACHINES)}
        for processes in (8, 64)
    }
    few, many = (found[processes]["fsdp"].stored for processes in (8, 64))
    for part in ("weights", "gradients", "optimizer state"):
        assert many[part] == pytest.approx(few[part] / 8, rel=1e-3)
    assert found[8]["ddp"].stored == found[64]["ddp"].stored
