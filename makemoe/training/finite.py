"""Notices a loss that is not finite, and finds the layer and the parameter it comes from."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from makemoe.checkpoint.format import is_all_finite
from makemoe.shards import here

NEVER = 1 << 62
"""A step that no run reaches."""

WAYS_OUT = "lower --model.optimizer.lr, or set --trainer.gradient_clip_val"


class Finding(NamedTuple):
    """The step at which something was not finite for the first time, and where it came from."""

    step: int
    cause: str


class Watch:
    """Remembers the first step whose loss was not finite.

    Looking at a value on a GPU means waiting for it. So the step can also be noted on the device,
    and looked at in `finding`.
    """

    def __init__(self) -> None:
        self.found: Finding | None = None
        self.since: Tensor | None = None

    def see(self, loss: Tensor, step: int, cause: Callable[[], str], at_once: bool) -> None:
        """Note whether the loss of a step is finite.

        Args:
            loss: a number, on any device.
            step: the optimizer step, counted from 1.
            cause: returns the cause; called only if it is needed, and before anything changes.
            at_once: whether to look at the loss now.
        """
        is_bad = ~loss.detach().isfinite()
        if not at_once:
            since = torch.where(is_bad, step, NEVER)
            self.since = since if self.since is None else torch.minimum(self.since, since)
        elif self.found is None and is_bad:
            self.found = Finding(step, cause())

    def finding(self, step: int, cause: Callable[[], str]) -> Finding | None:
        """What was found up to this step; on a GPU, waits for it. `cause` is as for `see`."""
        if self.found is None and self.since is not None:
            since = int(self.since.item())
            if since == step:
                self.found = Finding(step, cause())
            elif since < step:
                self.found = Finding(since, too_late(step))
        return self.found


def too_late(step: int) -> str:
    """The words for a cause that later steps have overwritten."""
    return (
        f"noticed at step {step}, after its cause was lost; resume with "
        "--trainer.log_every_n_steps 1 to see the layer"
    )


def spoilt(net: nn.Module, step: int) -> Finding | None:
    """The parameter that an update made not finite, if there is one.

    Args:
        net: the model, with the gradients of the last step if they still exist.
        step: the last step.
    """
    weights = not_finite(net.state_dict().items())
    if not weights:
        return None
    gradients = not_finite((n, p.grad) for n, p in net.named_parameters() if p.grad is not None)
    if gradients:  # the backward pass meets the last one first
        cause = f"first in the gradient of {gradients[-1]} ({len(gradients)} gradients)"
    else:
        cause = f"first in the update of {weights[0]} ({len(weights)} weights)"
    return Finding(step, cause)


def origin(net: nn.Module, step: int, forward: Callable[[], object] | None) -> str:
    """Where the loss of a step stopped being finite.

    Args:
        net: the model as it was for this step, with the gradients of the step before.
        step: the step, counted from 1.
        forward: computes the step's outputs again; None: that is not possible.
    """
    before = spoilt(net, step - 1)
    if before is not None:
        return f"{before.cause} at step {before.step}"
    own = ((here(parameter), name) for name, parameter in net.named_parameters())
    size, name = max((float(part.detach().abs().max()), name) for part, name in own if part.numel())
    weights = f"all weights are finite, up to {size:.3g} in {name}"
    if forward is None:
        return f"in the forward pass; {weights}"
    layer = first_output(net, forward)
    return f"first in {f'the output of {layer}' if layer else 'the loss itself'}; {weights}"


def first_output(net: nn.Module, forward: Callable[[], object]) -> str | None:
    """The innermost module with the first output that is not finite, in order of computation."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and any(is_overflown(tensor) for tensor in tensors_in(output)):
                found.append(name)

        return hook

    hooks = [part.register_forward_hook(watch(name)) for name, part in net.named_modules() if name]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors of a module's output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from tensors_in(part)


def is_overflown(tensor: Tensor) -> bool:
    """Whether a value is NaN or +inf; -inf may be a mask."""
    return tensor.is_floating_point() and not bool((tensor < math.inf).all())


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of the tensors with a value that is not finite; waits for a GPU once.

    Of tensors in parts, this process looks at its own.
    """
    own = [(name, here(tensor.detach())) for name, tensor in tensors]
    named = [(name, t) for name, t in own if t.is_floating_point() and t.numel()]
    if not named:
        return []
    flags = torch.stack([is_all_finite(t) for _, t in named])
    return [name for (name, _), is_good in zip(named, flags.tolist(), strict=True) if not is_good]
