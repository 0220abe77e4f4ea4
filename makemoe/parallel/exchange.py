"""Expert parallelism: rows travel to the processes that hold their experts, and back.

All processes of a group must compute the same layers in the same order, with rows or without.
"""

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from makemoe.model.backends import Backend, Groups, product_dtype
from makemoe.model.experts import Experts, GroupedLinear, StackedLinear


class Exchange(Backend):
    """Sends rows to the processes that hold their experts, where another backend computes them.

    Process r of the group holds the r-th of as many equal ranges of experts. Rows travel in the
    dtype of the matrix products, which under autocast halves what is sent.

    Args:
        inner: computes the experts held here.
        group: the processes that divide the experts among them.
    """

    name = "exchange"

    def __init__(self, inner: Backend, group: ProcessGroup) -> None:
        self.inner, self.group = inner, group
        self.size = group.size()

    def __call__(self, x_MD: Tensor, groups: Groups, experts: Experts) -> Tensor:
        sent_WE = groups.counts_E.view(self.size, -1)
        received_WE = torch.empty_like(sent_WE)
        torch.distributed.all_to_all_single(received_WE, sent_WE.contiguous(), group=self.group)
        # One wait for the device: the sizes of what is sent must be known on the host.
        sent, received = torch.stack([sent_WE.sum(1), received_WE.sum(1)]).tolist()
        rows_RD = exchanged(x_MD.to(product_dtype(x_MD)), sent, received, self.group)
        # They come by process, then by expert; backends take them by expert.
        W, E = received_WE.shape
        experts_in_turn = torch.arange(E, device=x_MD.device).repeat(W)
        expert_R = experts_in_turn.repeat_interleave(
            received_WE.flatten(), output_size=sum(received)
        )
        order_R = expert_R.argsort(stable=True)
        held = HeldExperts(experts, self.size)
        # Without `longest`: which rows have weight zero is known where they come from.
        y_RD = self.inner(rows_RD.index_select(0, order_R), Groups(received_WE.sum(0)), held)
        back_RD = y_RD.index_select(0, order_R.argsort())
        return exchanged(back_RD, received, sent, self.group)

    def refusal(self, x: Tensor, experts: Experts) -> str | None:
        return self.inner.refusal(x, experts)

    def description(self, x: Tensor, experts: Experts) -> str:
        return f"{self.inner.description(x, experts)} by {self.size} processes"


def exchanged(x_MD: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
    """Send rows to the processes of a group, in their order, and receive theirs; differentiable.

    Args:
        x_MD: the rows.
        sent: how many go to each process.
        received: how many come from each process.
        group: the processes.
    """
    y_RD: Tensor = Exchanged.apply(x_MD, sent, received, group)  # type: ignore[no-untyped-call]
    return y_RD


class Exchanged(torch.autograd.Function):
    """`exchanged`; gradients travel back."""

    @staticmethod
    def forward(
        ctx: Any, x_MD: Tensor, sent: list[int], received: list[int], group: ProcessGroup
    ) -> Tensor:
        ctx.sizes = sent, received, group
        y_RD = x_MD.new_empty(sum(received), x_MD.shape[1])
        torch.distributed.all_to_all_single(y_RD, x_MD.contiguous(), received, sent, group=group)
        return y_RD

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None, None]:
        sent, received, group = ctx.sizes
        return exchanged(grad_RD, received, sent, group), None, None, None


class HeldExperts(Experts):
    """The experts that this process holds, for a backend: their weights are ordinary tensors.

    Their gradients come from the rows of all processes of the group, and are afterwards averaged
    over the processes that hold the same experts. All other gradients are averaged over all
    processes. So these are divided by the size of the group here.

    Args:
        experts: the experts of a layer, of which each process of a group holds a part.
        size: number of processes in the group.
    """

    def __init__(self, experts: Experts, size: int) -> None:
        super().__init__(experts.num_experts, experts.n_embd, 0.0)
        self.experts, self.size = experts, size

    def forward(self, x: Tensor, linear: GroupedLinear) -> Tensor:
        def held(x: Tensor, layer: StackedLinear) -> Tensor:
            return linear(x, HeldLinear(layer, self.size))

        # Called, so that FSDP2 brings the weights together.
        y: Tensor = self.experts(x, held)
        return y

    def residual_outputs(self) -> list[StackedLinear]:
        return self.experts.residual_outputs()


class HeldLinear(StackedLinear):
    """The part of a stacked layer that this process holds; its gradients are divided by `size`."""

    def __init__(self, layer: StackedLinear, size: int) -> None:
        nn.Module.__init__(self)
        self.num_experts, self.in_features = layer.num_experts, layer.in_features
        self.out_features = layer.out_features
        self.__dict__["weight"] = own_weight(layer.weight, size)
        self.__dict__["bias"] = None if layer.bias is None else own_weight(layer.bias, size)


def own_weight(weight: Tensor, size: int) -> Tensor:
    """This process's part of a weight, whose gradient is divided by `size` on its way back."""
    own = weight.to_local() if isinstance(weight, DTensor) else weight
    divided: Tensor = DividedGradient.apply(own, size)  # type: ignore[no-untyped-call]
    return divided


class DividedGradient(torch.autograd.Function):
    """The same tensor, whose gradient is divided."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, divisor: int) -> Tensor:
        ctx.divisor = divisor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.divisor, None
