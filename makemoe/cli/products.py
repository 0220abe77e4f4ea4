"""Whether a model and its optimizer can compute in the precision of a trainer."""

import torch
from torch.optim import Optimizer

from makemoe.errors import UsageError
from makemoe.model.moe import MoELayer
from makemoe.model.transformer import MoETransformer

DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
"""By the beginning of a precision's name; all others compute in float32."""


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of matrix products in a precision of the trainer."""
    return DTYPES.get(precision.partition("-")[0], torch.float32)


def check_products(net: MoETransformer, precision: str) -> None:
    """Refuse a dispatch backend that cannot compute the experts, before anything is written.

    Raises:
        UsageError: with what to change.
    """
    like = torch.empty(0, dtype=dtype_of(precision))
    for part in net.modules():
        if isinstance(part, MoELayer):
            try:
                part.backend.check(like, part.experts)
            except UsageError as error:
                raise UsageError(f"--model.dispatch: {error}") from error


def check_eps(optimizer: Optimizer, precision: str) -> None:
    """Refuse an optimizer that would divide by 0, because its eps is 0 in weights of 16 bits.

    Raises:
        UsageError: with what to change.
    """
    if precision != "16-true":
        return
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if isinstance(eps, float) and eps > 0 and torch.tensor(eps, dtype=torch.float16) == 0:
            raise UsageError(
                f"--trainer.precision 16-true: eps {eps} of {type(optimizer).__name__} is 0 in "
                "float16, by which it would divide: give --model.optimizer.eps 1e-4, or precision "
                "bf16-true"
            )
