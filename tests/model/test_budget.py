import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from makemoe.errors import UsageError
from makemoe.machine import UNKNOWN, Memory
from makemoe.model import budget
from makemoe.model.attention import CausalSelfAttention
from makemoe.model.budget import USUAL, Need, Plan, check_memory, planned
from makemoe.model.experts import MLPExperts
from makemoe.model.norm import RMSNorm
from makemoe.model.positions import RotaryPositions
from makemoe.model.transformer import MoETransformer

GIB = 1 << 30


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "memory", lambda: Memory(GIB, UNKNOWN))


def refused(**sizes: Any) -> str:
    begun = time.perf_counter()
    with pytest.raises(UsageError) as caught:
        MoETransformer(**{"vocab_size": 65} | sizes)
    assert time.perf_counter() - begun < 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("size", [10**8, 10**10, 10**18])
@pytest.mark.parametrize("name", ["n_embd", "n_layer", "num_experts", "block_size"])
def test_a_size_that_does_not_fit_is_named_with_one_that_does(name: str, size: int) -> None:
    words = refused(**{name: size})
    assert words.startswith(f"{name} {size} takes at least ")
    assert "this machine has 1 GiB: " in words
    fits = int(words.removesuffix(" would fit").rpartition(" ")[2])
    check_memory(partial_model(**{name: fits}))


def partial_model(**sizes: int) -> Any:
    """The architecture of a small model, with other sizes."""
    return replace(MoETransformer(65, n_layer=1).architecture, **USUAL | sizes)


def test_the_figure_is_that_of_the_weights() -> None:
    # 12 layers of 8 experts, 8 n_embd^2 each.
    words = refused(n_layer=12, n_embd=1024)
    assert words.startswith("n_embd 1024 takes at least 3.2 GiB of memory (weights), and this")


def test_the_size_furthest_above_its_default_is_the_one_named() -> None:
    assert refused(n_embd=1280, n_layer=600).startswith("n_layer 600 ")
    assert refused(n_embd=12800, n_layer=60).startswith("n_embd 12800 ")


def test_what_fits_is_a_multiple_of_the_heads() -> None:
    words = refused(n_embd=12 * 10**5, n_head=12)
    assert int(words.split()[-3]) % 12 == 0


def test_what_fits_can_be_built() -> None:
    # Heads of one number have no norm, and those of an odd width no pairs.
    attention = partial(CausalSelfAttention, qk_norm=RMSNorm)
    for n_embd in range(15000, 15060, 6):
        words = refused(n_embd=n_embd, n_head=3, attention=attention, positions=RotaryPositions)
        fits = int(words.removesuffix(" would fit").rpartition(" ")[2])
        assert fits % 6 == 0
        assert 500 < fits < 600  # 6 layers of 8 experts of 8 n_embd^2, twice, in 1 GiB


def test_a_width_of_the_experts_is_named_too() -> None:
    for hidden in (10**8, 10**18, 10**30):
        words = refused(experts=partial(MLPExperts, hidden=hidden))
        assert words.startswith("experts.hidden ")
        assert words.endswith(" would fit")


def test_where_nothing_fits_only_the_figures_are_told() -> None:
    assert refused(n_embd=10**8, n_layer=10**7).endswith("this machine has 1 GiB")


def test_limits_of_the_process_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "memory", lambda: Memory(UNKNOWN, GIB))
    assert "this process is limited (ulimit) to 1 GiB" in refused(n_embd=10**5)


def test_sizes_that_would_be_built_are_not_refused_without_a_known_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "memory", lambda: Memory(UNKNOWN, UNKNOWN))
    check_memory(partial_model(n_embd=10**6))


def test_a_plan_counts_for_what_is_built_meanwhile() -> None:
    class Much(Plan):
        def needs(self, *_: Any) -> list[Need]:
            return [Need({"this and that": GIB, "a little": 1}, GIB, "the card has")]

    with planned(Much()):
        assert "(this and that), and the card has 1 GiB" in refused()
    MoETransformer(5, n_layer=1)


def test_usual_sizes_are_the_defaults() -> None:
    model = MoETransformer(5).architecture
    assert {name: getattr(model, name) for name in USUAL} == USUAL
