"""Routings for the tests of dispatch and of its backends."""

import torch

from makemoe.model.router import Routing


def random_routing(N: int, E: int, K: int, dropped: float = 0.0) -> Routing:
    logits = torch.randn(N, E)
    weights, experts = logits.topk(K)
    mask = torch.rand(N, K) < dropped
    mask[torch.randint(N, ()), torch.randint(K, ())] = False
    probs = logits.softmax(1)
    return Routing(weights.softmax(1), experts, logits, probs, mask if dropped else None)


def assigned(experts_NK: list[list[int]], dropped_NK: list[list[bool]] | None = None) -> Routing:
    experts = torch.tensor(experts_NK)
    weights = torch.linspace(0.1, 0.9, experts.numel()).view_as(experts)
    logits = torch.zeros(len(experts), 4)
    mask = None if dropped_NK is None else torch.tensor(dropped_NK)
    return Routing(weights, experts, logits, logits, mask)


def on_device(routing: Routing, device: str) -> Routing:
    return Routing(*(t if t is None else t.to(device) for t in routing))
