"""Orthogonalises matrices approximately, many at once: what a step of Muon spends its time on."""

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""a, b and c of the polynomial a s + b s^3 + c s^5, which moves singular values s towards 1."""

MOST_STEPS = 6
"""Rounding errors of a Gram matrix grow about twelvefold per step; in float32, 6 steps are safe."""

NARROW = 2 / 3
"""Smaller side over larger side up to which `by_gram` has fewer operations than `by_iterates`."""

EPS = 1e-7
"""Matrices with a smaller Frobenius norm are not scaled up to norm 1."""


def orthogonalised(x_MRC: Tensor, steps: int, dtype: torch.dtype | None = None) -> Tensor:
    """Matrices with the singular vectors of `x_MRC` and singular values near 1, (M, R, C).

    Newton-Schulz iteration (Jordan et al. 2024), begun at Frobenius norm 1. Five steps move
    singular values above 0.002 to between 0.68 and 1.21; smaller ones grow by at most 3.4445^5.

    Args:
        x_MRC: M matrices of R rows and C columns.
        steps: 1 to `MOST_STEPS`.
        dtype: that of the products, float32 or bfloat16; None: what is usual on the device,
            bfloat16 on a GPU. Matrices in float64 stay in it.
    """
    with torch.autocast(x_MRC.device.type, enabled=False):
        usual = torch.bfloat16 if x_MRC.device.type == "cuda" else torch.float32
        if (dtype or usual) == torch.bfloat16 and x_MRC.dtype != torch.float64:
            return by_iterates(x_MRC, steps, torch.bfloat16)
        dtype = torch.promote_types(x_MRC.dtype, torch.float32)
        small, large = sorted(x_MRC.shape[-2:])
        return (by_gram if small <= NARROW * large else by_iterates)(x_MRC, steps, dtype)


def by_iterates(x_MRC: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Each step multiplies the matrices themselves: safe in bfloat16."""
    a, b, c = COEFFICIENTS
    norm_M11 = torch.linalg.matrix_norm(
        x_MRC.to(torch.promote_types(dtype, torch.float32)), keepdim=True
    )
    is_wide = x_MRC.shape[-1] >= x_MRC.shape[-2]
    x: Tensor = (x_MRC / norm_M11.clamp(min=EPS)).to(dtype)
    x = x if is_wide else x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if is_wide else x.mT


def by_gram(x_MRC: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """The same with products of the smaller side only, which is cheaper and needs float32.

    Known as the fast iteration for rectangular matrices (arXiv:2505.16932, appendix F).

    With G = x x^T at norm 1, a step multiplies x by P = a I + b G + c G^2, and the next G is P G P.
    So x is multiplied only once, by the product Q of all P.
    """
    a, b, c = COEFFICIENTS
    x = x_MRC.to(dtype)
    is_wide = x.shape[-1] >= x.shape[-2]
    g = x @ x.mT if is_wide else x.mT @ x
    square_M11 = g.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].clamp(min=EPS**2)
    g = g / square_M11
    q = None
    for step in range(steps):
        p = torch.baddbmm(g, g, g, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        q = p if q is None else p @ q
        if step < steps - 1:
            g = p @ (g @ p)
    assert q is not None
    q = q * square_M11.rsqrt()
    return q @ x if is_wide else x @ q
