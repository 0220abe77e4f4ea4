"""A model's parts as formulas: NumPy in float64, one token and one head at a time, no cache."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

Floats = NDArray[np.float64]
Weights = dict[str, Floats]


def weights_of(module: nn.Module) -> Weights:
    """The weights of a module, by the names they have in a checkpoint."""
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def below(weights: Weights, name: str) -> Weights:
    """The weights of the part with that name."""
    start = f"{name}."
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


def layer_norm(x: Floats, weights: Weights, eps: float = 1e-5) -> Floats:
    scaled = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + eps)
    return scaled * weights["weight"] + weights["bias"]


def rms_norm(x: Floats, weights: Weights, eps: float = 1e-6) -> Floats:
    return x / math.sqrt((x**2).mean() + eps) * weights["weight"]


def norm(x: Floats, weights: Weights) -> Floats:
    """A norm with a shift is LayerNorm; no weights at all are no norm."""
    if not weights:
        return x
    return (layer_norm if "bias" in weights else rms_norm)(x, weights)


def rotation(size: int, position: int, base: float, turned: int | None = None) -> Floats:
    """The matrix that turns a head's numbers for a position: a 2 x 2 rotation per pair.

    `turned`: how many numbers of the head are turned, from the first; None: all.
    """
    matrix, turned = np.eye(size), size if turned is None else turned
    pairs = turned // 2
    for i in range(pairs):
        angle = position * base ** (-2 * i / turned)
        one, other = i, i + pairs
        matrix[one, one], matrix[one, other] = math.cos(angle), -math.sin(angle)
        matrix[other, one], matrix[other, other] = math.sin(angle), math.cos(angle)
    return matrix


def attention(
    x_TD: Floats,
    weights: Weights,
    n_head: int,
    base: float | None = None,
    start: int = 0,
    turned: int | None = None,
) -> Floats:
    """Causal attention of tokens at start, start + 1, ...; `base` turns queries and keys."""
    T, D = x_TD.shape
    size = D // n_head
    qkv = weights["qkv.weight"].reshape(3, n_head, size, D)
    out = np.zeros((T, D))
    for h in range(n_head):
        q, k, v = ([qkv[part, h] @ x for x in x_TD] for part in range(3))
        q = [norm(vector, below(weights, "norm_q")) for vector in q]
        k = [norm(vector, below(weights, "norm_k")) for vector in k]
        if base is not None:
            turns = [rotation(size, start + t, base, turned) for t in range(T)]
            q, k = ([turns[t] @ side[t] for t in range(T)] for side in (q, k))
        for t in range(T):
            scores = np.array([q[t] @ k[s] / math.sqrt(size) for s in range(t + 1)])
            shares = np.exp(scores) / np.exp(scores).sum()
            out[t, h * size : (h + 1) * size] = sum(shares[s] * v[s] for s in range(t + 1))
    return out @ weights["proj.weight"].T + weights.get("proj.bias", 0.0)


ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(x, 0.0),
    "squared_relu": lambda x: max(x, 0.0) ** 2,
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
}


def expert(x: Floats, weights: Weights, e: int, activation: str) -> Floats:
    """Expert e of a stack, for one token; with a gate if there are weights of one."""

    def linear(name: str, given: Floats) -> Floats:
        bias = weights.get(f"{name}.bias")
        return given @ weights[f"{name}.weight"][e] + (0.0 if bias is None else bias[e])

    act = np.vectorize(ACTIVATIONS[activation])
    if "fc_gate.weight" not in weights:
        return linear("fc_out", act(linear("fc_in", x)))
    return linear("fc_out", act(linear("fc_gate", x)) * linear("fc_in", x))


SCORES: dict[str, Callable[[Floats], Floats]] = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(),
}


def chosen_experts(
    x: Floats, weights: Weights, top_k: int, score: str | None
) -> tuple[list[int], Floats]:
    """The experts of a token and their weights: by `TopKRouter`, or with a score, which is biased.

    Without a choice between several, the weight is the share or the score among all.
    """
    logits = weights["gate.weight"] @ x + weights.get("gate.bias", 0.0)
    if score is None:
        among = SCORES["softmax"](logits)
        order = logits
    else:
        among = SCORES[score](logits)
        order = among + weights["bias_E"] + weights["eval_shift_E"]
    chosen = sorted(range(len(logits)), key=lambda e: -order[e])[:top_k]
    own = among[chosen]
    return chosen, own if top_k == 1 else own / own.sum()


def feed_forward(
    x: Floats, weights: Weights, top_k: int, activation: str, score: str | None = None
) -> Floats:
    """What follows attention, for one token: dense, routed, or routed beside shared experts."""
    if "shared.experts.fc_in.weight" in weights:
        both = below(weights, "routed"), below(weights, "shared")
        return sum(feed_forward(x, own, top_k, activation, score) for own in both)
    experts = below(weights, "experts")
    count = len(experts["fc_in.weight"])
    if "router.gate.weight" not in weights:
        return sum(expert(x, experts, e, activation) for e in range(count))
    chosen, shares = chosen_experts(x, below(weights, "router"), top_k, score)
    return sum(w * expert(x, experts, e, activation) for w, e in zip(shares, chosen, strict=True))


def logits(
    ids: Sequence[int],
    weights: Weights,
    n_head: int,
    top_k: int,
    activation: str,
    base: float | None = None,
    turned: int | None = None,
    score: str | None = None,
) -> Floats:
    """The logits (T, V) of one sequence; `score` is that of a `BiasedTopKRouter`."""
    x = weights["token_embedding.weight"][list(ids)]
    if "position_embedding.weight" in weights:
        x = x + weights["position_embedding.weight"][: len(ids)]
    layers = {int(name.split(".")[1]) for name in weights if name.startswith("blocks.")}
    for layer in sorted(layers):
        own = below(weights, f"blocks.{layer}")
        h = np.array([norm(row, below(own, "norm_1")) for row in x])
        x = x + attention(h, below(own, "attention"), n_head, base, turned=turned)
        h = np.array([norm(row, below(own, "norm_2")) for row in x])
        moe = below(own, "moe")
        x = x + np.array([feed_forward(row, moe, top_k, activation, score) for row in h])
    h = np.array([norm(row, below(weights, "norm")) for row in x])
    return h @ weights["head.weight"].T + weights.get("head.bias", 0.0)
