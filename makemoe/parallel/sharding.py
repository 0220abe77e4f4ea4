"""Divides the weights of a model over processes, by FSDP2 and on the experts' own axis."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from makemoe.errors import UsageError
from makemoe.model.experts import Experts, StackedLinear
from makemoe.model.moe import MoELayer
from makemoe.model.transformer import MoETransformer
from makemoe.parallel.exchange import Exchange
from makemoe.parallel.layout import EXPERTS, REPLICATE, SHARD, Layout, option


def check_experts(net: MoETransformer, size: int) -> None:
    """Raise UsageError if a model's experts cannot be divided over so many processes."""
    if size == 1:
        return
    layers = routed_layers(net)
    if not layers:
        raise UsageError(f"{option('experts')} {size}: the model has no layer that routes tokens")
    for layer in layers:
        if (held := layer.experts.num_experts) % size:
            raise UsageError(
                f"{option('experts')} {size} does not divide --model.num_experts {held}: each "
                "process holds as many experts"
            )
        stacked = {id(p) for part in stacks(layer.experts) for p in part.parameters()}
        if any(id(p) not in stacked for p in layer.experts.parameters()):
            raise UsageError(
                f"{option('experts')} {size}: {type(layer.experts).__name__} has weights outside "
                "its stacked layers, which cannot be divided by expert"
            )


def shard(net: MoETransformer, layout: Layout, device_type: str) -> None:
    """Divide a model's weights, which are the same in all processes; each keeps its part.

    Blocks are gathered one at a time, when they compute. Gradients are averaged over all processes,
    in float32 at least.

    Args:
        net: a model that was built alike in all processes.
        layout: the arrangement of the processes.
        device_type: where they compute.
    """
    dense, sparse = layout.meshes(device_type)
    dtype = next(net.parameters()).dtype
    policy = MixedPrecisionPolicy(reduce_dtype=torch.promote_types(dtype, torch.float32))
    if layout.experts > 1:
        for layer in routed_layers(net):
            divide(layer, sparse[EXPERTS])
            fully_shard(layer.experts, mesh=data_mesh(sparse), mp_policy=policy)
    for block in net.blocks:
        fully_shard(block, mesh=data_mesh(dense), mp_policy=policy)
    # The root too: what it kept whole after an evaluation would miss changes of its parts.
    fully_shard(net, mesh=data_mesh(dense), mp_policy=policy, reshard_after_forward=True)


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The processes over which gradients of the same weights are averaged."""
    return mesh[SHARD] if mesh[REPLICATE].size() == 1 else mesh[REPLICATE, SHARD]


def divide(layer: MoELayer, mesh: DeviceMesh) -> None:
    """Divide a layer's experts over the processes of a mesh, and send tokens to them."""
    layer.backend = Exchange(layer.backend, mesh.get_group())
    layer.experts.num_experts //= mesh.size()
    for part in stacks(layer.experts):
        part.num_experts //= mesh.size()
        for name, parameter in list(part.named_parameters(recurse=False)):
            own: DTensor = distribute_tensor(
                parameter.detach(), mesh, [Shard(0)], src_data_rank=None
            )
            setattr(part, name, nn.Parameter(own))


def routed_layers(net: MoETransformer) -> list[MoELayer]:
    """The layers whose experts are chosen by a router."""
    return [part for part in net.modules() if isinstance(part, MoELayer)]


def stacks(experts: Experts) -> list[StackedLinear]:
    """The stacked layers of experts."""
    return [part for part in experts.modules() if isinstance(part, StackedLinear)]
