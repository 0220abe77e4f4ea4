"""The one place that decides whether a model fits this machine, before it is built.

What is known of a model's memory is the least it takes, so what is refused could not have run.
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
"""What is said to fit may take so many times the least it takes."""

NAMED_FROM = 100
"""Parts of the need smaller than one in so many are not named."""


class Need(NamedTuple):
    """Memory that is wanted somewhere.

    Attributes:
        parts: bytes by what they are for.
        limit: bytes there are.
        where: who has these.
    """

    parts: dict[str, int]
    limit: int
    where: str

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """What a model is built for, which decides what it takes; by itself, to be built."""

    def needs(self, model: Architecture, size: Footprint) -> list[Need]:
        """What is wanted, and where."""
        return needs_here({"weights": size.built})

    def sizes(self) -> dict[str, int]:
        """Names of its own sizes that decide it, each with its default."""
        return {}


PLAN: ContextVar[Plan] = ContextVar("plan")


@contextmanager
def planned(plan: Plan) -> Iterator[None]:
    """While it lasts, models are built for this."""
    before = PLAN.set(plan)
    try:
        yield
    finally:
        PLAN.reset(before)


def needs_here(parts: dict[str, int], processes: int = 1) -> list[Need]:
    """What so many processes want of this machine, and each of what it is granted."""
    has = memory()
    together = {name: processes * count for name, count in parts.items()}
    owner = "this machine has" if processes == 1 else f"for {processes} processes this machine has"
    return [
        Need(together, has.machine, owner),
        Need(parts, has.process, "this process is limited (ulimit) to"),
    ]


class Size(NamedTuple):
    """A size for which a smaller one could be asked.

    Attributes:
        name: what the user knows it by.
        value: what it is.
        usual: its default, or what is usual.
        put: the model and the plan with another value.
        step: what it must be a multiple of.
        least: what it must not be below.
    """

    name: str
    value: int
    usual: int
    put: Callable[[int], tuple[Architecture, Plan]]
    step: int = 1
    least: int = 1


USUAL = {"block_size": 128, "n_layer": 6, "n_embd": 128, "num_experts": 8}
"""The defaults of a model's sizes."""

USUAL_WIDTH = 512
"""What the integers that routers and experts are given are measured by: most are widths."""


def check_memory(model: Architecture, plan: Plan | None = None) -> None:
    """Raise UsageError, with the figures and what would fit, for a model that cannot.

    Args:
        model: its sizes and parts.
        plan: what it is for; None: as `planned` says.
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
    """The largest value that fits with room to spare, all else as it is; None: there is none."""

    def fits(steps: int) -> bool:
        model, plan = size.put(steps * size.step)
        return all(SPARE * n.total <= n.limit for n in plan.needs(model, footprint(model)))

    low, high = -(-size.least // size.step), size.value // size.step
    if low > high or not fits(low):
        return None
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * size.step


def sizes_of(model: Architecture, plan: Plan) -> list[Size]:
    """All that make a model and its use as large as they are."""

    def of_model(name: str, value: int) -> tuple[Architecture, Plan]:
        change: dict[str, Any] = {name: value}
        return replace(model, **change), plan

    def of_part(part: str, name: str, value: int) -> tuple[Architecture, Plan]:
        change: dict[str, Any] = {part: partial(getattr(model, part), **{name: value})}
        return replace(model, **change), plan

    def of_plan(name: str, value: int) -> tuple[Architecture, Plan]:
        return model, replace(plan, **{name: value})

    steps, least = {"n_embd": model.n_head}, {"num_experts": model.top_k}
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
    for part in ("router", "experts"):
        for name, value in integers(getattr(model, part)).items():
            sizes.append(Size(f"{part}.{name}", value, USUAL_WIDTH, partial(of_part, part, name)))
    for name, usual in plan.sizes().items():
        sizes.append(Size(name, getattr(plan, name), usual, partial(of_plan, name)))
    return sizes


def integers(factory: Any) -> dict[str, int]:
    """The sizes that a factory of a part was given."""
    given = factory.keywords if isinstance(factory, partial) else {}
    return {name: value for name, value in given.items() if type(value) is int and value > 0}
