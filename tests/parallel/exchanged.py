"""What each of several processes checks of the exchange of tokens, against one process."""

import oracle
import torch
import torch.distributed
from routings import random_routing
from torch.distributed.device_mesh import init_device_mesh

from makemoe.model.backends import Grouped, Loop, Padded
from makemoe.model.dispatch import dispatch
from makemoe.model.experts import MLPExperts
from makemoe.model.moe import MoELayer
from makemoe.model.router import Routing, TopKRouter
from makemoe.parallel.exchange import Exchange
from makemoe.parallel.sharding import divide
from makemoe.shards import here

D, E, K = 8, 8, 2


def check() -> None:
    """Outputs and gradients, for loads and lengths of all kinds."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("experts",))
    lengths = {
        "even": [6] * size,
        "uneven": [1 + 5 * r for r in range(size)],
        "without tokens": [0] + [9] * (size - 1),
    }
    for seed, (lengths_R, kind) in enumerate(
        (lengths[name], kind)
        for name in lengths
        for kind in ("any", "dead expert", "idle process", "one expert", "dropped")
    ):
        for backend in (Loop(), Padded(), Grouped()):
            torch.manual_seed(seed)
            layer = MoELayer(TopKRouter(D, E, K), MLPExperts(E, D, 0.0), backend=backend)
            with torch.no_grad():
                for parameter in layer.experts.parameters():
                    parameter.normal_(std=0.5)
            x_ND, upstream_ND = torch.randn(sum(lengths_R), D), torch.randn(sum(lengths_R), D)
            compare(layer, x_ND, upstream_ND, routed(kind, len(x_ND), size), lengths_R, mesh, rank)


def routed(kind: str, N: int, size: int) -> Routing:
    routing = random_routing(N, E, K, dropped=0.5 if kind == "dropped" else 0.0)
    experts_NK = routing.experts_NK
    if kind == "dead expert":
        experts_NK = torch.where(experts_NK == 3, (experts_NK.sum(1, keepdim=True) + 1) % 3, 4)
    if kind == "idle process":
        experts_NK = experts_NK % (E // size)
    if kind == "one expert":
        experts_NK = torch.full_like(experts_NK, E - 1)
    return routing._replace(experts_NK=experts_NK)


def compare(
    layer: MoELayer,
    x_ND: torch.Tensor,
    upstream_ND: torch.Tensor,
    routing: Routing,
    lengths: list[int],
    mesh: torch.distributed.DeviceMesh,
    rank: int,
) -> None:
    size = len(lengths)
    whole_x, whole_weights = x_ND.clone().requires_grad_(), routing.weights_NK.clone()
    whole_weights.requires_grad_()
    leaves = [whole_x, whole_weights, *layer.experts.parameters()]
    y_ND = oracle.moe(whole_x, routing._replace(weights_NK=whole_weights), layer.experts)
    expected = torch.autograd.grad(y_ND, leaves, upstream_ND, materialize_grads=True)

    divide(layer, mesh)
    assert isinstance(layer.backend, Exchange)
    own = slice(sum(lengths[:rank]), sum(lengths[: rank + 1]))
    x, weights = x_ND[own].clone().requires_grad_(), routing.weights_NK[own].clone()
    weights.requires_grad_()
    parts = Routing(*(None if t is None else t[own] for t in routing))
    y = dispatch(x, parts._replace(weights_NK=weights), layer.experts, layer.backend)
    parameters = list(layer.experts.parameters())
    got = torch.autograd.grad(y, [x, weights, *parameters], upstream_ND[own])
    torch.testing.assert_close(y, y_ND[own].detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[:2], [g[own] for g in expected[:2]], rtol=1e-5, atol=1e-5)
    # Later they are averaged over the processes with the same experts, here one; all other
    # gradients over `size` processes.
    held = slice(rank * E // size, (rank + 1) * E // size)
    for gradient, of_all in zip(got[2:], expected[2:], strict=True):
        torch.testing.assert_close(here(gradient), of_all[held] / size, rtol=1e-5, atol=1e-5)
