"""Decides whether a model fits into this machine's memory, before it is built.

The estimates are lower bounds, so a model that is refused could not have run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from makemoe.errors import UsageError
from makemoe.machine import memory
from makemoe.model.block import Architecture
from makemoe.model.footprint import Footprint, footprint
from makemoe.sizes import in_bytes, in_digits

SPARE = 2
"""A suggested size fits even if it takes this multiple of the estimate."""

PASSED_OVER = 3
"""How many smaller values are tried in place of one with which a model cannot be built."""

NAMED_FROM = 100
"""Parts smaller than the total divided by this are not named."""


class Need(NamedTuple):
    """Memory needed in one place, such as this machine.

    Attributes:
        parts: bytes needed, by purpose.
        limit: bytes available.
        where: the place, as the beginning of a sentence about the limit.
    """

    parts: dict[str, int]
    limit: int
    where: str

    @property
    def total(self) -> int:
        """Total bytes needed."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """What a model is built for, which determines the memory it takes; here, only to be built."""

    def needs(self, model: Architecture, size: Footprint) -> list[Need]:
        """The memory needed in each place."""
        return needs_here({"weights": size.built})

    def sizes(self) -> dict[str, int]:
        """The plan's own sizes that affect memory, by name, with their defaults."""
        return {}


PLAN: ContextVar[Plan] = ContextVar("plan")


@contextmanager
def planned(plan: Plan) -> Iterator[None]:
    """Within this context, models are built for `plan`."""
    before = PLAN.set(plan)
    try:
        yield
    finally:
        PLAN.reset(before)


def needs_here(parts: dict[str, int], processes: int = 1) -> list[Need]:
    """What the processes together need of this machine, and each one of its own limit."""
    has = memory()
    together = {name: processes * count for name, count in parts.items()}
    owner = "this machine has" if processes == 1 else f"for {processes} processes this machine has"
    return [
        Need(together, has.machine, owner),
        Need(parts, has.process, "this process is limited (ulimit) to"),
    ]


class Size(NamedTuple):
    """A size that could be reduced.

    Attributes:
        name: the user's name for it.
        value: the current value.
        usual: the default, or a usual value.
        put: returns the model and the plan with another value.
        step: the value must be a multiple of this.
        least: the minimum value.
    """

    name: str
    value: int
    usual: int
    put: Callable[[int], tuple[Architecture, Plan]]
    step: int = 1
    least: int = 1


USUAL = {"block_size": 128, "n_layer": 6, "n_embd": 128, "num_experts": 8}
"""The defaults of a model's sizes."""

USUAL_EXTRA = 1
"""Usual number of shared experts, and usual width of a dense layer."""

PARTS = ("norm", "positions", "attention", "feed_forward", "router", "experts")

USUAL_WIDTH = 512
"""Usual value of integer arguments of a model's parts: most of them are widths."""


def check_memory(model: Architecture, plan: Plan | None = None) -> None:
    """Raise UsageError, with the numbers and a size that would fit, for a model that is too large.

    Args:
        model: its sizes and parts.
        plan: what the model is for; None: the plan set by `planned`.
    """
    plan = plan or PLAN.get(Plan())
    needs = plan.needs(model, footprint(model))
    excess = next((need for need in needs if need.total > need.limit), None)
    if excess is None:
        return
    size = max(sizes_of(model, plan), key=lambda size: size.value / size.usual)
    fitting = largest_that_fits(size)
    advice = f": {size.name} {fitting} would fit" if fitting else ""
    named = [name for name, count in excess.parts.items() if count * NAMED_FROM > excess.total]
    raise UsageError(
        f"{size.name} {in_digits(size.value)} takes at least {in_bytes(excess.total)} of memory "
        f"({', '.join(named)}), and {excess.where} {in_bytes(excess.limit)}{advice}"
    )


def largest_that_fits(size: Size) -> int | None:
    """The largest value that fits with room to spare, all else unchanged; None if there is none.

    Values with which the model cannot be built are passed over, such as heads that are too narrow
    for a norm, or of an odd width that no pairs fill.
    """

    def fits(steps: int) -> bool | None:
        """Whether this value fits; None if the model cannot be built with it."""
        try:
            model, plan = size.put(steps * size.step)
            needs = plan.needs(model, footprint(model))
        except UsageError:
            return None
        return all(SPARE * need.total <= need.limit for need in needs)

    low, high = -(-size.least // size.step), size.value // size.step
    largest = None
    while low < high:
        middle = (low + high) // 2
        below = range(middle, max(low, middle - PASSED_OVER) - 1, -1)
        tried = ((steps, fits(steps)) for steps in below)
        steps, fit = next((pair for pair in tried if pair[1] is not None), (middle, None))
        if fit is False:
            high = steps
        else:
            low = middle + 1
            largest = steps if fit else largest
    return None if largest is None else largest * size.step


def sizes_of(model: Architecture, plan: Plan) -> list[Size]:
    """All sizes that determine how much memory a model and its use take."""

    def of_model(name: str, value: int) -> tuple[Architecture, Plan]:
        change: dict[str, Any] = {name: value}
        if name == "n_layer":
            change["dense_layers"] = frozenset(n for n in model.dense_layers if n < value)
        return replace(model, **change), plan

    def of_part(part: str, name: str, value: int) -> tuple[Architecture, Plan]:
        change: dict[str, Any] = {part: partial(getattr(model, part), **{name: value})}
        return replace(model, **change), plan

    def of_plan(name: str, value: int) -> tuple[Architecture, Plan]:
        return model, replace(plan, **{name: value})

    # Rotary positions need heads of an even width, or of a multiple of 4 or 8.
    size = max(1, model.n_embd // model.n_head)
    steps = {"n_embd": model.n_head * min(8, size & -size)}
    least = {"num_experts": model.top_k}
    sizes = [
        Size(
            name,
            getattr(model, name),
            usual,
            partial(of_model, name),
            steps.get(name, 1),
            least.get(name, 1),
        )
        for name, usual in USUAL.items()
    ]
    used = {"shared_experts": model.routed_layers, "dense_width": len(model.dense_layers)}
    for name, layers in used.items():
        if layers and (value := getattr(model, name)):
            sizes.append(Size(name, value, USUAL_EXTRA, partial(of_model, name)))
    for part in PARTS:
        for name, value in integers(getattr(model, part)).items():
            sizes.append(Size(f"{part}.{name}", value, USUAL_WIDTH, partial(of_part, part, name)))
    for name, usual in plan.sizes().items():
        sizes.append(Size(name, getattr(plan, name), usual, partial(of_plan, name)))
    return sizes


def integers(factory: Any) -> dict[str, int]:
    """The positive integer arguments of a part's factory."""
    given = factory.keywords if isinstance(factory, partial) else {}
    return {name: value for name, value in given.items() if type(value) is int and value > 0}
