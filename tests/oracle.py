"""The slow, obvious reference: loops over tokens, explicit masks, no cache."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from makemoe.model.attention import CausalSelfAttention
from makemoe.model.experts import Experts, MLPExperts, StackedLinear
from makemoe.model.router import Routing, TopKRouter
from makemoe.model.transformer import MoETransformer

Floats = NDArray[np.float64]


def attention(x_TD: Tensor, layer: CausalSelfAttention) -> Tensor:
    T, D = x_TD.shape
    size = D // layer.n_head
    q, k, v = (x_TD @ layer.qkv.weight.T).split(D, dim=1)
    past = torch.ones(T, T, device=x_TD.device).tril().bool()
    heads = []
    for h in range(layer.n_head):
        own = slice(h * size, (h + 1) * size)
        scores = q[:, own] @ k[:, own].T / math.sqrt(size)
        heads.append(torch.where(past, scores, -torch.inf).softmax(1) @ v[:, own])
    return torch.cat(heads, 1) @ layer.proj.weight.T + layer.proj.bias


def route(x_ND: Tensor, router: TopKRouter) -> Routing:
    logits = x_ND @ router.gate.weight.T + router.gate.bias
    probs = logits.exp() / logits.exp().sum(1, keepdim=True)
    experts = logits.argsort(1, descending=True)[:, : router.top_k]
    weights = probs.gather(1, experts)
    if router.top_k > 1:
        weights = weights / weights.sum(1, keepdim=True)
    return Routing(weights, experts, logits, probs)


def moe(x_ND: Tensor, routing: Routing, experts: Experts) -> Tensor:
    assert isinstance(experts, MLPExperts)
    w_in, b_in = weight_and_bias(experts.fc_in)
    w_out, b_out = weight_and_bias(experts.fc_out)
    rows = []
    for n, x in enumerate(x_ND):
        y = torch.zeros_like(x)
        for k, e in enumerate(routing.experts_NK[n].tolist()):
            if routing.dropped_NK is None or not routing.dropped_NK[n, k]:
                hidden = experts.activation(x @ w_in[e] + b_in[e])
                y = y + routing.weights_NK[n, k] * (hidden @ w_out[e] + b_out[e])
        rows.append(y)
    return torch.stack(rows)


def weight_and_bias(layer: StackedLinear) -> tuple[Tensor, Tensor]:
    """Zeros for a layer without a bias."""
    bias = torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
    return layer.weight, bias


def dropped(routing: Routing, capacity: int, order: str) -> list[list[bool]]:
    experts, weights = routing.experts_NK.tolist(), routing.weights_NK.tolist()
    queue = [(n, k) for n in range(len(experts)) for k in range(len(experts[0]))]
    if order == "weight":
        queue.sort(key=lambda slot: -weights[slot[0]][slot[1]])
    taken: dict[int, int] = {}
    out = [[False for _ in row] for row in experts]
    for n, k in queue:
        e = experts[n][k]
        out[n][k] = taken.get(e, 0) >= capacity
        taken[e] = taken.get(e, 0) + 1
    return out


def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    std = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    return centred / std * layer.weight + layer.bias


def transformer(ids: Sequence[int], model: MoETransformer) -> Tensor:
    """The logits (T, V) of one sequence, without dropout."""
    x = model.token_embedding.weight[list(ids)] + model.position_embedding.weight[: len(ids)]
    for block in model.blocks:
        x = x + attention(norm(x, block.norm_1), block.attention)
        h = norm(x, block.norm_2)
        x = x + moe(h, route(h, block.moe.router), block.moe.experts)
    return norm(x, model.norm) @ model.head.weight.T + model.head.bias


def next_token_probs(
    logits: Floats, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Floats:
    probs = np.exp((logits - logits.max()) / temperature)
    likeliest = sorted(range(len(probs)), key=lambda v: -probs[v])[:top_k]
    probs /= probs[likeliest].sum()
    kept: list[int] = []
    for v in likeliest:
        if top_p is None or probs[kept].sum() < top_p:
            kept.append(v)
    out = np.zeros_like(probs)
    out[kept] = probs[kept] / probs[kept].sum()
    return out


def sampler(seed: int, temperature: float, **cuts: float | None) -> Callable[[Floats], int]:
    draws = torch.Generator().manual_seed(seed)

    def choose(logits: Floats) -> int:
        draw = float(torch.rand((), generator=draws, dtype=torch.float64))
        cdf = np.cumsum(next_token_probs(logits, temperature, **cuts))
        return int(np.searchsorted(cdf, draw, side="right"))

    return choose


def generate(
    model: MoETransformer, prompt: Sequence[int], count: int, choose: Callable[[Floats], int]
) -> list[int]:
    """Every token from scratch; past block_size, from the later half of the context."""
    context, new = list(prompt)[-model.block_size :], []
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([context]))[0][0, -1]
        new.append(choose(logits.double().numpy()))
        context.append(new[-1])
        if len(context) > model.block_size:
            context = context[-(model.block_size // 2) :]
    return new
