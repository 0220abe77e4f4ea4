import os
from collections.abc import Callable, Iterator

import pytest
import torch

from makemoe.model.transformer import MoETransformer


def pytest_configure() -> None:
    """One thread a process: tests run side by side, and their models are small."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], scope="module")
def device(request: pytest.FixtureRequest) -> str:
    """Where a test computes."""
    return request.param


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1337)
        yield


@pytest.fixture
def build() -> Callable[..., MoETransformer]:
    """A small model; large weights, so that neither routing nor sampling is near uniform."""

    def small(**changes: object) -> MoETransformer:
        sizes = {"vocab_size": 11, "block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}
        model = MoETransformer(**(sizes | {"num_experts": 4} | changes))
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
        return model

    return small
