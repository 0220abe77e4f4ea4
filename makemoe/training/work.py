"""How much a model computes per token, without Lightning."""

from typing import NamedTuple

from torch import nn

from makemoe.model.transformer import MoETransformer
from makemoe.training.param_groups import weights_of

TRAINING = 3
"""Forward passes that a token of training costs: the backward pass costs two, because it forms the
gradients of a product's inputs and those of its weights."""


class Work(NamedTuple):
    """The size of a model, and what a token of training costs.

    Attributes:
        parameters: number of parameters, as `MoETransformer.count_parameters` counts them.
        active: number of those that one token uses.
        flops: floating-point operations per token, forward and backward; a multiply-add is two.
    """

    parameters: int
    active: int
    flops: int


def work_of(net: MoETransformer) -> Work:
    """Count the work of a model, per token of a full context.

    FLOPs are those of matrix products: with every weight that multiplies a token (`products`), of
    the experts only with the chosen ones, and of attention's scores and weighted sum. A query sees
    (T + 1) / 2 positions on average. What is elementwise is not counted, nor is the optimizer's
    step; tokens that capacity drops are counted as if they were computed.
    """
    weights = net.for_one_token(products)
    # 2 products with the mean of (T + 1) / 2 keys or values, of width D together.
    attention = len(net.blocks) * net.n_embd * (net.block_size + 1)
    return Work(*net.count_parameters(), TRAINING * 2 * (weights + attention))


def products(module: nn.Module) -> int:
    """Number of multiplications by the weights of a module, if a token meets each of them once."""
    return sum(weight.parameter.numel() * len(weight.multiplying) for weight in weights_of(module))


def steps_to_spend(flops: int, work: Work, tokens_per_step: int) -> int:
    """The number of steps, at least one, whose FLOPs come nearest to the given ones.

    Args:
        flops: FLOPs to spend on training.
        work: of the model that is trained.
        tokens_per_step: tokens per optimizer step, over all processes and accumulated batches.
    """
    per_step = work.flops * tokens_per_step
    return max(1, (flops + per_step // 2) // per_step)
