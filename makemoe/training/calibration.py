"""Which bias evens the loads, worked out from the scores of many tokens."""

import torch
from torch import Tensor


def even_bias(scores_NE: Tensor, bias_E: Tensor, top_k: int, sweeps: int = 10) -> Tensor:
    """A bias with which each expert is chosen for nearly the same number of tokens, (E,).

    Each sweep moves every expert's bias half way to the value at which it would get its share,
    N K / E, if the others did not change: the quantile, over tokens, of what it lacks to be chosen.
    The results are the dual variables of assigning N tokens to experts of equal capacity
    (arXiv:2502.15451). No bias can separate tokens whose scores do not differ, for example because
    they are tiny compared with the bias.

    Args:
        scores_NE: scores of N tokens, without bias.
        bias_E: initial bias.
        top_k: experts per token K.
        sweeps: number of sweeps.
    """
    N, E = scores_NE.shape
    share = max(1, round(N * top_k / E))
    if top_k == E:
        return bias_E
    for _ in range(sweeps):
        lacks_NE = kth_of_others(scores_NE + bias_E, top_k) - scores_NE
        bias_E = (bias_E + lacks_NE.kthvalue(share, 0).values) / 2
    return bias_E


def kth_of_others(scores_NE: Tensor, top_k: int) -> Tensor:
    """For each expert, the K-th best score of the others, which it must exceed to be chosen."""
    best_NK1 = scores_NE.topk(top_k + 1).values
    kth_N1, next_N1 = best_NK1[:, top_k - 1 : top_k], best_NK1[:, top_k:]
    return torch.where(scores_NE >= kth_N1, next_N1, kth_N1)
