"""Whether the products of a model can be computed in the precision of a trainer."""

import torch

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
