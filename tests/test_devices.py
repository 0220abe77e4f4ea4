import pytest
import torch
from devices import MPS, OnMps, SimulatedMps

from makemoe.devices import in_float64, mixing_all_bits, place_for, seed_generator, seed_step


def test_the_simulated_device_computes_and_has_no_float64() -> None:
    x = torch.randn(3)
    with SimulatedMps():
        there = x.to(MPS)
        assert (there.device, type(there)) == (MPS, OnMps)
        assert torch.equal((there * 2).cpu(), x * 2)
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(3, dtype=torch.float64, device=MPS)
        with pytest.raises(AssertionError, match="same device"):
            there + x


def test_float64_is_on_the_cpu_where_a_device_has_none() -> None:
    x = torch.randn(3)
    with SimulatedMps():
        assert torch.equal(in_float64(x.to(MPS)), x.double())
        assert torch.equal(in_float64(x), x.double())
    cpu = torch.device("cpu")
    assert place_for(torch.float64, MPS) == cpu
    assert place_for(torch.float32, MPS) == MPS
    assert place_for(torch.float64, torch.device("cuda", 1)) == torch.device("cuda", 1)


def test_the_generator_of_the_device_is_seeded_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.mps, "manual_seed", seeds.append)
    before = torch.get_rng_state()
    seed_generator(MPS, 7)
    assert seeds == [7]
    assert torch.equal(torch.get_rng_state(), before)
    seed_generator(torch.device("cpu"), 7)
    drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert seeds == [7]


def test_seeds_that_differ_in_their_upper_bits_draw_other_numbers() -> None:
    cpu, drawn = torch.device("cpu"), []
    for seed in (5, 5 + (1 << 32), 5 + (1 << 33), 5 + (1 << 62)):
        seed_step(cpu, seed, step=3, rank=0)
        drawn.append(torch.rand(4))
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 4
    assert mixing_all_bits(1337) == 1337
