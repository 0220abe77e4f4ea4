"""The width of experts at which a model costs given FLOPs per token."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import torch

from makemoe.errors import UsageError
from makemoe.model.block import Architecture
from makemoe.model.experts import Experts
from makemoe.model.transformer import MoETransformer
from makemoe.search.twins import nearest, takes_hidden
from makemoe.training.work import work_of


def width_at(model: Architecture, experts: Callable[..., Experts], flops: int) -> int:
    """The width F of the experts at which a token's FLOPs are nearest to `flops`.

    With more experts per token, each is narrower. Nothing is allocated.

    Args:
        model: the model.
        experts: the class of its experts, with their arguments bound.
        flops: FLOPs per token to reach, as `work_of` counts them.

    Raises:
        UsageError: if the experts have no width to choose, or are not narrow enough at 1.
    """
    if not takes_hidden(experts):
        raise UsageError("the class of the experts has no argument hidden: use sweep.equal tokens")

    def counted(width: int) -> int:
        return flops_of(replace(model, experts=partial(experts, hidden=width)))

    least = counted(1)
    if least > flops:
        raise UsageError(
            f"costs at least {least:,} FLOPs per token, more than the {flops:,} of the config: "
            "search smaller values, or use sweep.equal tokens"
        )
    return nearest(counted, flops)


def flops_of(model: Architecture) -> int:
    """FLOPs per token of training."""
    sizes = {field.name: getattr(model, field.name) for field in fields(model)}
    with torch.device("meta"):
        return work_of(MoETransformer(**sizes)).flops
