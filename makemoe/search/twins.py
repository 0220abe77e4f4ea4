"""The dense twin of a model: the same model without routers, of the same active or total size."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

from makemoe.errors import UsageError
from makemoe.model.block import Architecture
from makemoe.model.experts import Experts
from makemoe.model.footprint import footprint

Size = Literal["active", "total"]

WIDEST = 1 << 40
"""No machine holds a wider model."""

ROUTED_ONLY = (
    *("router", "num_experts", "top_k", "capacity_factor", "drop_order", "dispatch"),
    *("feed_forward", "shared_experts", "balancers"),
)
"""Settings of a model that mean nothing where every layer is dense."""


class Twin(NamedTuple):
    """The feed-forward layers of a dense twin.

    Attributes:
        experts: width in experts.
        hidden: width F of an expert; None if its class has no such argument.
        parameters: of the whole model.
    """

    experts: int
    hidden: int | None
    parameters: int


def twin_of(model: Architecture, experts: Callable[..., Experts], parameters: int) -> Twin:
    """The dense model with the number of parameters nearest to `parameters`.

    One expert per layer of a width to be found; if the class of the experts has no argument
    `hidden`, several experts of the width they have. Nothing is allocated.

    Args:
        model: the model with routers.
        experts: the class of its experts, with their arguments bound.
        parameters: the size to reach.

    Raises:
        UsageError: if even the narrowest dense model is larger.
    """
    dense = replace(model, dense_layers=frozenset(range(model.n_layer)), dense_width=1)
    if takes_hidden(experts):

        def counted(width: int) -> int:
            return footprint(replace(dense, experts=partial(experts, hidden=width))).parameters

        width = nearest(counted, parameters)
        return Twin(1, width, counted(width))

    def of_experts(width: int) -> int:
        return footprint(replace(dense, dense_width=width)).parameters

    width = nearest(of_experts, parameters)
    return Twin(width, None, of_experts(width))


def nearest(count: Callable[[int], int], wanted: int) -> int:
    """The width from 1 whose count, which grows with it, is nearest to `wanted`."""
    if count(1) > wanted:
        raise UsageError("even the narrowest dense model is larger: there is no twin")
    low, high = 1, 2
    while count(high) <= wanted:
        low, high = high, high * 2
        if high > WIDEST:
            raise UsageError("its size does not depend on the width of the experts: no twin")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= wanted else (low, middle)
    return low if wanted - count(low) <= count(high) - wanted else high


def takes_hidden(experts: Callable[..., Experts]) -> bool:
    """Whether the class of the experts has an argument `hidden`, which is their width."""
    return "hidden" in inspect.signature(experts).parameters


def twin_words(twin: Twin, n_layer: int, experts: Mapping[str, Any]) -> list[str]:
    """The options that make a model its twin.

    Args:
        twin: the twin.
        n_layer: number of layers.
        experts: the class of the experts and its arguments, as in settings.
    """
    words = [
        f"--model.dense_layers={json.dumps(list(range(n_layer)))}",
        f"--model.dense_width={twin.experts}",
        "--model.shared_experts=0",
        "--model.balancers=[]",
    ]
    if twin.hidden is not None:
        arguments = (experts.get("init_args") or {}) | {"hidden": twin.hidden}
        spec = {"class_path": experts["class_path"], "init_args": arguments}
        words.append(f"--model.experts={json.dumps(spec)}")
    return words


def without_router(settings: dict[str, Any]) -> dict[str, Any]:
    """A model's settings without those that mean nothing in a dense model, and without widths."""
    own = {key: value for key, value in settings.items() if key not in ROUTED_ONLY}
    own.pop("dense_width", None)
    spec = own.get("experts")
    if isinstance(spec, dict):
        arguments = dict(spec.get("init_args") or {})
        arguments.pop("hidden", None)
        own["experts"] = spec | {"init_args": arguments}
    return own
